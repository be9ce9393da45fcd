"""What a finished search leaves behind: result.json, the table, the picture, the model card, the Parquet files."""

from evomerge.report.frames import items_frame, trials_frame
from evomerge.report.history import write_history_png
from evomerge.report.model_card import model_card
from evomerge.report.outputs import write_outputs
from evomerge.report.path import path_text, write_path_png
from evomerge.report.result import Row, rows, to_dict
from evomerge.report.table import table, table_text, verdict

__all__ = [
    "Row",
    "items_frame",
    "model_card",
    "path_text",
    "rows",
    "table",
    "table_text",
    "to_dict",
    "trials_frame",
    "verdict",
    "write_history_png",
    "write_outputs",
    "write_path_png",
]
