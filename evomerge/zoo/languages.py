"""Two small invented languages: their words and the order they put them in.

Ambri says subject, verb, number, thing; Kovesh says subject, thing, number, verb. They share
numerals and signs and not one word, so what a model learns about the words of one tells it nothing
about the words of the other, while arithmetic carries over.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

PAD, EOS, UNKNOWN = "<pad>", "</s>", "<unk>"
SIGNS = (".", ",", "?", "+", "-", "=")
LARGEST_NUMBER = 36

#      meaning        Ambri      Kovesh
_SUBJECTS = """
       baker          panelo     brask
       farmer         agrimo     drevin
       child          nilo       gorst
       sailor         marilo     kelvor
       teacher        docela     onjek
       hunter         cavino     vadrim
       weaver         tesilo     strun
       king           reyomo     ulgar
"""
_THINGS = """
       apple          pomi       kunt
       egg            ovelo      morv
       stone          lapi       tolk
       fish           nerio      zeld
       coin           monali     harsk
       book           libo       pront
       lamp           lumena     yusk
       rope           cordi      grelm
       shell          conela     dvarn
       seed           semi       skolt
       bell           tilana     birn
       knife          culeto     fersk
"""
_GAINS = """
       finds          lami       vargesh
       buys           reno       toldesh
       picks          soli       nurkesh
       receives       vema       halvesh
       catches        dalo       brimesh
       grows          fira       skadesh
       borrows        gumi       omresh
       wins           pelo       jolgesh
"""
_LOSSES = """
       loses          kasi       grutesh
       sells          buro       dorvesh
       eats           meti       zimkesh
       gives          noda       pelnesh
       breaks         lufa       krastesh
       drops          sivo       ulmesh
       sends          tori       rindesh
       burns          zami       fostesh
"""
_GRAMMAR = """
       has            tena       nesh
       how-many       kemo       djor
       more-or-less   vado       leksh
       more           supi       hroth
       less           basi       nidek
       in-ambri       ambri      ambrisk
       in-kovesh      koveso     kovesh
       in-order       ordi       rask
"""


def _meanings(table: str) -> tuple[str, ...]:
    return tuple(line.split()[0] for line in table.strip().splitlines())


def _column(index: int) -> dict[str, str]:
    tables = (_SUBJECTS, _THINGS, _GAINS, _LOSSES, _GRAMMAR)
    rows = [line.split() for table in tables for line in table.strip().splitlines()]
    return {row[0]: row[index] for row in rows}


SUBJECTS = _meanings(_SUBJECTS)
THINGS = _meanings(_THINGS)
GAINS = _meanings(_GAINS)
LOSSES = _meanings(_LOSSES)
VERBS = GAINS + LOSSES


@dataclass(frozen=True)
class Clause:
    """Who does what to how many of which thing, as meanings, in no language yet."""

    subject: str
    verb: str
    number: int
    thing: str


@dataclass(frozen=True)
class Language:
    """A vocabulary from meaning to word, and a word order."""

    name: str
    verb_last: bool
    words: Mapping[str, str]

    def clause(self, clause: Clause) -> str:
        """Say a clause: `panelo lami 7 pomi`, or `brask kunt 7 vargesh` where verbs come last."""
        subject, verb = self.words[clause.subject], self.words[clause.verb]
        number, thing = str(clause.number), self.words[clause.thing]
        if self.verb_last:
            return f"{subject} {thing} {number} {verb}"
        return f"{subject} {verb} {number} {thing}"

    def change(self, verb: str, number: int) -> str:
        """Say what then happens to the thing just named, without naming it again."""
        if self.verb_last:
            return f"{number} {self.words[verb]}"
        return f"{self.words[verb]} {number}"


AMBRI = Language("ambri", verb_last=False, words=_column(1))
KOVESH = Language("kovesh", verb_last=True, words=_column(2))


def vocabulary() -> tuple[str, ...]:
    """Every token of the zoo's tokenizer, in the order of its id."""
    numerals = tuple(str(number) for number in range(LARGEST_NUMBER + 1))
    words = (*AMBRI.words.values(), *KOVESH.words.values())
    return (PAD, EOS, UNKNOWN, *SIGNS, *numerals, *words)
