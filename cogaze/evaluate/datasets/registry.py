"""The benchmark datasets by name, and their options."""

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from cogaze.evaluate.datasets.chexpert import read_chexpert
from cogaze.evaluate.datasets.chexpert_200 import read_chexpert_5x200, read_chexpert_8x200
from cogaze.evaluate.datasets.covidx import read_covidx
from cogaze.evaluate.datasets.mimic_5x200 import read_mimic_5x200
from cogaze.evaluate.datasets.nih import read_nih
from cogaze.evaluate.datasets.openi import read_openi
from cogaze.evaluate.datasets.rsna import read_rsna
from cogaze.evaluate.datasets.shenzhen import read_shenzhen
from cogaze.evaluate.datasets.siim import read_siim
from cogaze.evaluate.datasets.tbx11k import read_tbx11k
from cogaze.evaluate.records import EvalSet

READERS: Mapping[str, Callable[..., EvalSet]] = {
    "rsna": read_rsna,
    "siim": read_siim,
    "nih": read_nih,
    "chexpert": read_chexpert,
    "chexpert_5x200": read_chexpert_5x200,
    "chexpert_8x200": read_chexpert_8x200,
    "mimic_5x200": read_mimic_5x200,
    "tbx11k": read_tbx11k,
    "shenzhen": read_shenzhen,
    "covidx": read_covidx,
    "openi": read_openi,
}


def read_dataset(name: str, root: Path | str, lists: Path | str | None = None, **options: Any) -> EvalSet:
    """Read a dataset by its name, from its folder, with split lists from another and the reader's own options.

    Raises ValueError where there is no such dataset or option, or an option has another value than it may have.
    """
    if name not in READERS:
        raise ValueError(f"there is no dataset {name!r}; there are {', '.join(READERS)}")
    allowed = reader_options(name)
    unknown = sorted(set(options) - set(allowed))
    if unknown:
        raise ValueError(f"{name} has no option {', '.join(unknown)}; it has {', '.join(allowed)}")
    checked = {option: _checked(name, option, value, allowed[option]) for option, value in options.items()}
    return READERS[name](Path(root), None if lists is None else Path(lists), **checked)


def reader_options(name: str) -> dict[str, Any]:
    """Return the options of a dataset's reader and the types of their values."""
    reader = READERS[name]
    kinds = get_type_hints(reader)
    parameters = inspect.signature(reader).parameters.values()
    return {one.name: kinds[one.name] for one in parameters if one.kind is one.KEYWORD_ONLY}


def _checked(name: str, option: str, value: Any, kind: Any) -> Any:
    kinds = get_args(kind) or (kind,)
    if get_origin(kind) is Literal:
        if value not in kinds:
            raise ValueError(f"{name}: {option} is {value!r}, must be one of {', '.join(map(repr, kinds))}")
        return value
    if Path in kinds and isinstance(value, str):
        return Path(value)
    if type(value) not in kinds and not (Path in kinds and isinstance(value, Path)):
        names = " or ".join(getattr(one, "__name__", str(one)) for one in kinds)
        raise ValueError(f"{name}: {option} is of type {type(value).__name__}, must be {names}")
    return value
