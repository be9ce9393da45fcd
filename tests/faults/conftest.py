"""What kills left is said at the end of a run, however many processes it had."""


def pytest_terminal_summary(terminalreporter):
    for reports in terminalreporter.stats.values():
        for report in reports:
            for name, value in getattr(report, "user_properties", ()):
                if name == "kills" and report.when == "call":
                    terminalreporter.write_line(str(value))
