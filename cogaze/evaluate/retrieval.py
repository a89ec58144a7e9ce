"""Which report belongs to an image, which images to a report, by cosine; the same study is a hit."""

import numpy as np
import numpy.typing as npt

from cogaze.evaluate.metrics import BoolArray, FloatArray, chance_rank, chance_recall, first_hit_ranks

TOP = (1, 5)


def retrieval(image: FloatArray, report: FloatArray, study_id: npt.NDArray[np.int64]) -> dict[str, float]:
    """Figures of image -> report and report -> image among N samples that have both, by name.

    image, report: (N, dim). study_id: (N,). A study's report is one candidate and one query, however many images or
    readings the study has. `chance` figures are those of a random order.
    """
    _, first = np.unique(study_id, return_index=True)
    cosine = _unit(image) @ _unit(report[first]).T
    hits = study_id[:, None] == study_id[first][None]
    return {
        **_figures("image to report", cosine, hits),
        **_figures("report to image", cosine.T, hits.T),
    }


def _figures(name: str, similarity: FloatArray, hits: BoolArray) -> dict[str, float]:
    ranks = first_hit_ranks(similarity, hits)
    figures = {f"{name} R@{k}": float((ranks <= k).mean()) for k in TOP}
    figures[f"{name} median rank"] = float(np.median(ranks))
    chance = {f"{name} R@{k} chance": chance_recall(hits, k) for k in TOP}
    return {**figures, **chance, f"{name} median rank chance": chance_rank(hits)}


def _unit(rows: FloatArray) -> FloatArray:
    return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12))
