"""The chat templates of a tokenizer, and the one that a row is rendered with."""

from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedTokenizerBase

from reflogp.data_schemas.errors import InputError
from reflogp.stages.precompute.read.preferences import Preference
from reflogp.stages.precompute.read.tools import OWN_ARGUMENTS
from reflogp.stages.precompute.tokens.chat_template import ChatTemplate
from reflogp.stages.precompute.tokens.special_tokens import SpecialTokens

_DEFAULT, _FOR_TOOLS = "default", "tool_use"


class Templates:
    """The chat templates of a tokenizer, or the one that takes their place.

    Attributes:
        special: the tokenizer's special tokens.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        name: str | None = None,
        source: str | None = None,
        arguments: Mapping[str, Any] | None = None,
    ) -> None:
        """Prepare the templates.

        Args:
            tokenizer: the tokenizer.
            name: name of the only template to use.
            source: source of the only template to use.
            arguments: arguments of the template for all rows.

        Raises:
            InputError: the tokenizer has no template of the name, or an argument is not the
                template's.
        """
        self.special = SpecialTokens(tokenizer)
        self._arguments = dict(arguments or {})
        if own_arguments := sorted(OWN_ARGUMENTS.intersection(self._arguments)):
            raise InputError(
                f"--template-kwargs {', '.join(own_arguments)}: not an argument of a template. "
                "Leave it out."
            )
        own = tokenizer.chat_template
        sources: dict[str, str] = own if isinstance(own, dict) else {_DEFAULT: own} if own else {}
        if source is not None:
            sources = {_DEFAULT: source}
        elif name is not None:
            if name not in sources:
                raise InputError(
                    f"--chat-template {name}: there is no such file, and the tokenizer has no "
                    f"template of this name. Its templates: {', '.join(sorted(sources)) or 'none'}."
                )
            sources = {_DEFAULT: sources[name]}
        self._templates = {name: ChatTemplate(tokenizer, said) for name, said in sources.items()}
        self._none = ChatTemplate(tokenizer, "")
        self.there = _DEFAULT in sources

    def choose(self, tools: list[dict[str, Any]] | None) -> ChatTemplate:
        """Return the template of a row: `tool_use` for one with tools, if there is one."""
        name = _FOR_TOOLS if tools and _FOR_TOOLS in self._templates else _DEFAULT
        return self._templates.get(name, self._none)

    def arguments(self, preference: Preference) -> dict[str, Any]:
        """Return the arguments of the template for a row, whose own come before the run's."""
        found = {**self._arguments, **(preference.template_kwargs or {})}
        return {**found, "tools": preference.tools} if preference.tools else found
