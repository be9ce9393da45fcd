"""Tokenizers of merges: whose vocabulary, which embedding each token gets, the files and the chat template."""

from evomerge.merging.tokens.files import set_special_ids, set_vocabulary, tokenizer_files
from evomerge.merging.tokens.gather import Gather, Gatherer
from evomerge.merging.tokens.merged import MergedVocabulary, merge_vocabularies, settings_of
from evomerge.merging.tokens.place import embedding_rows, is_vocabulary
from evomerge.merging.tokens.planned import PlannedTokens, TokenPlanner
from evomerge.merging.tokens.template import chat_template, check_template

__all__ = [
    "Gather",
    "Gatherer",
    "MergedVocabulary",
    "PlannedTokens",
    "TokenPlanner",
    "chat_template",
    "check_template",
    "embedding_rows",
    "is_vocabulary",
    "merge_vocabularies",
    "set_special_ids",
    "set_vocabulary",
    "settings_of",
    "tokenizer_files",
]
