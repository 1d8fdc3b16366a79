"""The models on this machine, and how a client's name finds one.

A name is short ("all-MiniLM-L6-v2") or full ("sentence-transformers/all-MiniLM-L6-v2"). A directory
is called by its short name, or by its full name with two hyphens for the slash ("BAAI--bge-m3").
Names are compared, never joined to a path, so none leads out of the models directory.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from app import errors
from app.embeddings import files

# Where sentence-transformers itself looks for a name without an organisation.
_DEFAULT_ORGANISATION = "sentence-transformers"
# Well-known models of others: their short name is enough.
_ORGANISATIONS = {
    "BAAI": ("bge-small-en-v1.5", "bge-base-en-v1.5", "bge-large-en-v1.5"),
    "intfloat": (
        "e5-small-v2",
        "e5-base-v2",
        "e5-large-v2",
        "multilingual-e5-small",
        "multilingual-e5-base",
    ),
    "mixedbread-ai": ("mxbai-embed-large-v1",),
    "Snowflake": ("snowflake-arctic-embed-m-v1.5",),
}
_ORGANISATION_OF = {
    name.casefold(): organisation
    for organisation, names in _ORGANISATIONS.items()
    for name in names
}


@dataclass(frozen=True, slots=True)
class FoundModel:
    """A model on this machine, by its full name."""

    name: str
    directory: Path

    def answers_to(self, name: str) -> bool:
        """Whether `name` is its full or short name or that of its directory, in any case."""
        short = self.name.rpartition("/")[2]
        return name.casefold() in {
            self.name.casefold(),
            short.casefold(),
            self.directory.name.casefold(),
        }


def full_name(name: str) -> str:
    """Return the full name of a model whose name may be short."""
    if "/" in name:
        return name
    return f"{_ORGANISATION_OF.get(name.casefold(), _DEFAULT_ORGANISATION)}/{name}"


def models_in(models_dir: Path) -> list[FoundModel]:
    """Return the models in `models_dir`, one a sub-directory, by name. Raises `OSError`."""
    return sorted(_models_in(models_dir), key=lambda model: model.name)


def choose(models: Sequence[FoundModel], name: str) -> FoundModel | None:
    """Return the model among `models` that `name` means, or None.

    Raises `InvalidInput` when the name means several.
    """
    meant = [model for model in models if model.answers_to(name)]
    exact = [model for model in meant if name in {model.name, model.directory.name}]
    meant = exact or meant
    if len({model.name for model in meant}) > 1:
        raise errors.InvalidInput(
            f"embedding_model is ambiguous: {', '.join(model.name for model in meant)}"
        )
    return meant[0] if meant else None


def _models_in(models_dir: Path) -> Iterator[FoundModel]:
    for directory in models_dir.iterdir():
        if not directory.name.startswith(".") and directory.is_dir() and files.is_model(directory):
            organisation, _, name = directory.name.rpartition("--")
            yield FoundModel(
                f"{organisation}/{name}" if organisation else full_name(name), directory
            )
