"""View policies as Python objects, for those who write no command lines.

    from belvedere import policies

    belvedere.pretrain("photos/", views=policies.hard(candidates=6, inner=policies.learned(retention=0.4)))

One function a policy, by the policy's own name; its keywords are the options that the command line has as
`views.<option>`. They are checked when a run begins.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from belvedere import plugins


@dataclass(frozen=True)
class Policy:
    """A policy's name and options; an option may be a policy itself (`inner` of hard views)."""

    name: str
    options: Mapping[str, Any]

    def settings(self) -> dict[str, Any]:
        """The same as flat keys of a configuration."""
        found: dict[str, Any] = {"views.policy": self.name}
        for option, value in self.options.items():
            if self.name == "hard" and option == "locals" and isinstance(value, str):
                option = "local_views"  # views.locals is how many local views there are
            if isinstance(value, Policy):
                inner = value.settings()
                value = inner.pop("views.policy")
                found |= inner
            found[f"views.{option}"] = value
        return found


def __getattr__(name: str) -> Callable[..., Policy]:
    if name not in plugins.names("policy"):
        raise AttributeError(f"no view policy '{name}': {plugins.nearest(name, plugins.names('policy'))}")
    return lambda **options: Policy(name, options)


def __dir__() -> list[str]:
    return ["Policy", *plugins.names("policy")]
