"""``continuation``: how a model goes on with held-out texts, against how they go on."""

from __future__ import annotations

from importlib.util import find_spec
from typing import ClassVar

from pydantic import PositiveInt

from domain_pretrain.errors import ConfigError
from domain_pretrain.evaluate.generate import generate, text_behind, whole_characters
from domain_pretrain.evaluate.held_out import HeldOutOptions
from domain_pretrain.evaluate.likeness import bleu, rouge_l
from domain_pretrain.evaluate.model import Model
from domain_pretrain.evaluate.probe import register
from domain_pretrain.records.score import Part, Score


class ContinuationOptions(HeldOutOptions):
    """Options of ``continuation``; ``texts`` and so on are those of :class:`HeldOutOptions`.

    Attributes:
        documents: of every domain; few, as each new token of one is a forward step.
        prompt_tokens: of a document that are shown; one that has no more is left out.
        new_tokens: that are compared at most; fewer where the document or the model ends.
    """

    predicts: ClassVar[bool] = True
    probe: ClassVar[str] = "continuation"

    documents: PositiveInt = 50
    prompt_tokens: PositiveInt = 64
    new_tokens: PositiveInt = 64

    def check(self) -> None:
        """See that the packages are there, and read all texts.

        Raises:
            ConfigError: they are not, or the texts cannot be read, or a domain has none.
        """
        missing = [name for name in ("sacrebleu", "rouge_score") if find_spec(name) is None]
        if missing:
            raise ConfigError(
                f"the probe continuation needs {' and '.join(missing).replace('_', '-')}: "
                "pip install 'domain-pretrain[evaluate]'"
            )
        super().check()


@register("continuation", ContinuationOptions)
def continuation(model: Model, options: ContinuationOptions) -> list[Score]:
    """Two scores of every domain; higher is better.

    ``bleu``: of all its documents together, 0 … 100. It is no sum over documents, so that it has
    no parts and no error. ``rouge_l``: the mean of the documents' F-measures, 0 … 1.

    Raises:
        ConfigError: prompt and new tokens do not fit the model's context; or no document of a
            domain is longer than the prompt.
    """
    if options.prompt_tokens + options.new_tokens > model.context:
        raise ConfigError(
            f"continuation: prompt_tokens {options.prompt_tokens:,} and new_tokens "
            f"{options.new_tokens:,} do not fit the model's context of {model.context:,} tokens: "
            "give fewer"
        )
    scores = []
    for domain, texts in options.held_out.items():
        names, prompts, expected = [], [], []
        for text in texts:
            tokens = model.encode(text.content)
            shown = whole_characters(model, tokens, options.prompt_tokens)
            rest = text_behind(model, tokens[:shown], tokens[shown : shown + options.new_tokens])
            if shown and len(tokens) > options.prompt_tokens and rest.strip():
                names.append(text.name)
                prompts.append([model.end, *tokens[:shown]])
                expected.append(rest)
        if not names:
            raise options.nothing(
                domain, f"none is longer than prompt_tokens, {options.prompt_tokens:,} tokens"
            )
        written = [
            text_behind(model, prompt[1:], tokens)
            for prompt, tokens in zip(
                prompts, generate(model, prompts, options.new_tokens), strict=True
            )
        ]
        parts = [
            Part(name, value, 1)
            for name, value in zip(names, rouge_l(written, expected), strict=True)
        ]
        scores += [
            Score("bleu", domain, bleu(written, expected), 1, higher_is_better=True),
            Score.of("rouge_l", domain, parts, higher_is_better=True),
        ]
    return [score for score in scores if score is not None]
