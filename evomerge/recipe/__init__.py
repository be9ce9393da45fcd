"""What to build: mergekit's recipe YAML as a frozen model, and a hash of what it means.

The schema is mergekit's (models | slices | modules, gradients, filters, their precedence, tokenizers, chains); what
mergekit lacks sits under one extra key, `evomerge:`. Nothing here loads torch.
"""

from evomerge.recipe.chain import Chain, Step
from evomerge.recipe.consistency import filters, ignored, merged_models, stack_ends, tokenizer_model
from evomerge.recipe.path import Hop, Path
from evomerge.recipe.read import load_chain, load_recipe, parse_chain, parse_recipe
from evomerge.recipe.reference import BASE, UNION, ModelReference
from evomerge.recipe.schema import Extras, InputModel, InputSlice, Module, OutputSlice, Recipe
from evomerge.recipe.tokenizer import ModelToken, TokenEmbedding, TokenizerSettings, ZeroToken
from evomerge.recipe.values import Condition, Parameters, Scalar, Setting, number, resolve, scalars

__all__ = [
    "BASE",
    "UNION",
    "Chain",
    "Condition",
    "Extras",
    "Hop",
    "InputModel",
    "InputSlice",
    "ModelReference",
    "ModelToken",
    "Module",
    "OutputSlice",
    "Parameters",
    "Path",
    "Recipe",
    "Scalar",
    "Setting",
    "Step",
    "TokenEmbedding",
    "TokenizerSettings",
    "ZeroToken",
    "filters",
    "ignored",
    "load_chain",
    "load_recipe",
    "merged_models",
    "number",
    "parse_chain",
    "parse_recipe",
    "resolve",
    "scalars",
    "stack_ends",
    "tokenizer_model",
]
