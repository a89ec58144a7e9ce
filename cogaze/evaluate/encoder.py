"""A saved model as evaluation asks of it: images and texts to unit vectors, patches and latents, attention."""

import hashlib
import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jsonargparse import ArgumentParser
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from cogaze.data.collate import CollateConfig, check_special_tokens, normalised
from cogaze.data.transforms import View, ViewConfig
from cogaze.evaluate.canvas import Canvas, CanvasReader
from cogaze.evaluate.methods import METHODS, Method, Shown, Tokens
from cogaze.evaluate.metrics import FloatArray
from cogaze.evaluate.processes import batches_of, rows_in_order
from cogaze.evaluate.records import EvalImage
from cogaze.evaluate.similarity import Embedded, Similarity
from gazeprep.schema import InputError

Images = Sequence[EvalImage] | Sequence[Canvas]
RUN_FILE = "run.json"
BATCH = 32  # images
TEXTS = 64  # of a batch
BLOCK_BYTES = 2**24  # of a file, at once


@dataclass(frozen=True, eq=False)
class Features:
    """What a model makes of B images, nothing of it normalised.

    patches (B, P, D), latents (B, L, D), pooled (B, D), the mean of the latents; patch_mask (B, P), which patches
    show image; views: where it lies on its canvas.
    """

    patches: Tensor
    latents: Tensor
    pooled: Tensor
    patch_mask: Tensor
    views: tuple[View, ...]


class Encoder:
    """A model of either method with its tokenizer, prompts and view.

    With several processes (torch.distributed) each encodes its share and all get everything, in order, bit for bit as
    one alone has it. workers: processes that read images ahead.
    """

    def __init__(
        self,
        method: Method,
        tokenizer: PreTrainedTokenizerBase,
        collate: CollateConfig,
        view: ViewConfig,
        *,
        workers: int = 0,
    ) -> None:
        check_special_tokens(tokenizer, collate.text)
        self.method, self.tokenizer, self.collate, self.workers = method, tokenizer, collate, workers
        self.model = method.model.eval()
        self.reader = CanvasReader(view.still(), method.model.patch_grid)
        self.device = next(method.model.parameters()).device

    def picture(self, image: EvalImage | Canvas) -> Canvas:
        """Return an image on the canvas that the model sees; see CanvasReader.read."""
        return self.reader.read(image)

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> FloatArray:
        """Return one unit vector (N, dim) for each text; padding counts for nothing."""
        return self._unit_rows(texts, self.method.report, whole=True)

    @torch.no_grad()
    def images(self, images: Images, *, with_context: bool = False, batch: int = BATCH) -> FloatArray:
        """Return one unit vector (N, dim) for each image, the mean of its latents.

        with_context: age and sex, or what a shard has of the context prompt, steer the latents, where there is any.
        """

        def encode(batches: Sequence[range]) -> Iterator[dict[str, Tensor]]:
            for seen in self._seen(images, batches, with_context=with_context):
                yield {"pooled": F.normalize(seen.pooled.float(), dim=-1)}

        return rows_in_order(batches_of(len(images), batch), encode)["pooled"].astype(np.float64)

    @torch.no_grad()
    def embedded(self, images: Images, *, with_context: bool = False, batch: int = BATCH) -> Embedded:
        """Return images as what is compared with texts: CoGaze's one vector each, EGMA's patches that show image."""
        if not self.method.by_patches:
            return Embedded.of(self.images(images, with_context=with_context, batch=batch))

        def encode(batches: Sequence[range]) -> Iterator[dict[str, Tensor]]:
            for seen in self._seen(images, batches):
                yield {"patches": F.normalize(seen.patches.float(), dim=-1), "mask": seen.patch_mask}

        rows = rows_in_order(batches_of(len(images), batch), encode)
        return Embedded(rows["patches"][rows["mask"]], rows["mask"].sum(axis=1))

    def embedded_texts(self, texts: Sequence[str]) -> Embedded:
        """Return texts as what is compared with images: CoGaze's one vector each, EGMA's sentences."""
        pieces = [self.method.pieces(text) for text in texts]
        vectors = self.texts([piece for own in pieces for piece in own])
        return Embedded(vectors, np.array([len(own) for own in pieces], dtype=np.int64))

    def similarity(self, images: Images, texts: Sequence[str], *, with_context: bool = False) -> FloatArray:
        """Return how alike images and texts are (N, M), from -1 to 1."""
        return Similarity(self.embedded(images, with_context=with_context), self.embedded_texts(texts)).array()

    @torch.no_grad()
    def disease_logits(self, images: Images, *, with_context: bool = False, batch: int = BATCH) -> FloatArray:
        """Return what the model's own head says of each image (N, 14); raises ValueError where it has none."""

        def encode(batches: Sequence[range]) -> Iterator[dict[str, Tensor]]:
            for seen in self._seen(images, batches, with_context=with_context):
                yield {"logits": self.method.disease_logits(seen.pooled).float()}

        return rows_in_order(batches_of(len(images), batch), encode)["logits"].astype(np.float64)

    @torch.no_grad()
    def features(self, images: Images, *, with_context: bool = False, batch: int = BATCH) -> Iterator[Features]:
        """Deliver the features of all the images, batch by batch, in this process alone."""
        yield from self._seen(images, batches_of(len(images), batch), with_context=with_context)

    def see(self, canvases: Sequence[Canvas], *, with_context: bool = False) -> Features:
        """Return the features of one batch, with gradients where they are enabled."""
        shown = self.shown(canvases, with_context=with_context)
        patches, latents = self.method.see(shown)
        return Features(patches, latents, latents.mean(dim=1), shown.patch_mask, tuple(one.view for one in canvases))

    @torch.no_grad()
    def attention(self, images: Images, sentences: Sequence[Sequence[str]], *, batch: int = BATCH) -> list[FloatArray]:
        """Return for each image a softmax over its shown patches (S_i, P) for each of its sentences.

        Of scaled cosines of sentence and patch, as in training.
        """
        starts = np.cumsum([0, *(len(own) for own in sentences)])
        if not starts[-1]:
            return [np.zeros((0, int(np.prod(self.reader.grid)))) for _ in sentences]
        flat = [text for own in sentences for text in own]
        vectors = torch.from_numpy(self._unit_rows(flat, self.method.sentence, whole=False)).to(self.device).float()

        def encode(batches: Sequence[range]) -> Iterator[dict[str, Tensor]]:
            for numbers, seen in zip(batches, self._seen(images, batches), strict=True):
                own = [vectors[starts[number] : starts[number + 1]] for number in numbers]
                yield {
                    "attention": torch.cat(
                        [self._looked(*one) for one in zip(own, seen.patches, seen.patch_mask, strict=True)]
                    )
                }

        rows = rows_in_order(batches_of(len(images), batch), encode)["attention"].astype(np.float64)
        return [rows[start:stop] for start, stop in pairwise(starts)]

    def _looked(self, sentences: Tensor, patches: Tensor, mask: Tensor) -> Tensor:
        """Return the attention (S, P) of sentences (S, D) to an image's patches (P, D), of which mask (P,) shows."""
        logits = self.method.scale().float() * sentences @ F.normalize(patches.float(), dim=-1).mT
        return logits.masked_fill(~mask, -torch.inf).softmax(dim=-1)

    # --- to tensors

    def shown(self, canvases: Sequence[Canvas], *, with_context: bool = False) -> Shown:
        """Return a batch as the model's inputs."""
        contexts = [self.collate.text.filled_context(one.context) if with_context else "" for one in canvases]
        pixels = torch.from_numpy(np.stack([one.pixels for one in canvases])).to(self.device)
        mean, std = (torch.tensor(one).to(self.device) for one in (self.collate.pixel_mean, self.collate.pixel_std))
        return Shown(
            pixel_values=normalised(pixels, mean, std),
            patch_mask=torch.from_numpy(np.stack([one.patch_mask for one in canvases])).to(self.device),
            view_position=torch.tensor([one.view_position for one in canvases], device=self.device),
            context=self.tokens(contexts),
            has_context=torch.tensor([bool(text) for text in contexts], device=self.device),
        )

    def tokens(self, texts: Sequence[str]) -> Tokens:
        """Tokenize texts whose prompt is filled in; one without tokens holds one padding token that counts."""
        pad = self.tokenizer.pad_token_id
        lists = self.tokenizer(
            list(texts), add_special_tokens=False, truncation=True, max_length=self.collate.text.max_tokens
        )["input_ids"]
        rows = [torch.tensor(row or [pad]) for row in lists]
        lengths = torch.tensor([len(row) for row in rows])
        ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=pad)
        mask = torch.arange(ids.shape[1])[None] < lengths[:, None]
        return Tokens(ids.to(self.device), mask.to(self.device))

    def _unit_rows(self, texts: Sequence[str], prompt: str, *, whole: bool) -> FloatArray:
        """Return unit vectors (N, D) of texts in a prompt, as whole texts or as spoken sentences."""
        name, vectors_of = ("report", self.method.texts) if whole else ("sentence", self.method.sentences)

        def encode(batches: Sequence[range]) -> Iterator[dict[str, Tensor]]:
            for batch in batches:
                tokens = self.tokens([prompt.format(**{name: texts[number].strip()}).strip() for number in batch])
                yield {"text": F.normalize(vectors_of(tokens).float(), dim=-1)}

        return rows_in_order(batches_of(len(texts), TEXTS), encode)["text"].astype(np.float64)

    def _seen(self, images: Images, batches: Sequence[range], *, with_context: bool = False) -> Iterator[Features]:
        """Read batches of images, ahead in worker processes if there are any, and deliver their features."""
        pictures = _Pictures(images, self.reader, batches)
        for canvases in DataLoader(pictures, batch_size=None, num_workers=self.workers, collate_fn=_as_it_is):
            yield self.see(canvases, with_context=with_context)


class _Pictures(Dataset[list[Canvas]]):
    """Batches of images by number; holds no model, so that workers need none."""

    def __init__(self, images: Images, reader: CanvasReader, batches: Sequence[range]) -> None:
        self.images, self.reader, self.batches = images, reader, batches

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, number: int) -> list[Canvas]:
        return [self._read(place) for place in self.batches[number]]

    def _read(self, place: int) -> Canvas:
        try:
            return self.reader.read(self.images[place])
        except InputError as error:  # which one, by its place in the part: ids are told to nobody
            raise InputError(error.reason, f"image {place + 1} of {len(self.images)}: {error}") from None


@dataclass(frozen=True)
class ReadRun:
    """What a model's run.json says: its method, and how images and texts reach it."""

    method: str
    collate: CollateConfig
    view: ViewConfig
    stated: dict[str, Any]


def read_run(folder: str | Path, methods: Collection[str]) -> ReadRun:
    """Read run.json of a folder that a run of one of these methods exported.

    Raises ValueError where the folder lacks it, or it is another method's or another version's.
    """
    try:
        stated = json.loads((Path(folder) / RUN_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"the model's folder has no readable {RUN_FILE} ({type(error).__name__}); give the "
            "folder that a run of pipelines/pretrain.py exported, model or best"
        ) from None
    method = stated.get("method")
    if method not in methods:
        raise ValueError(f"{RUN_FILE} says method {method!r}, must be one of {', '.join(methods)}")
    parts = _config_of(stated)
    return ReadRun(method, parts.collate, parts.view, stated)


def weights_sha256(folder: Path) -> str:
    """Hash a model's weights, file after file; raises ValueError where there are none."""
    paths, found = sorted(folder.glob("*.safetensors")), hashlib.sha256()
    if not paths:
        raise ValueError("the model's folder holds no weights (*.safetensors); give the folder that a run exported")
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(BLOCK_BYTES):
                found.update(block)
    return found.hexdigest()


def load_encoder(folder: str | Path, device: torch.device | str = "cpu", *, workers: int = 0) -> Encoder:
    """Load what a run exported: model, tokenizer and `run.json`, which says prompts, view and pixels' mean and std.

    Raises ValueError where the folder lacks one, or holds another method's model.
    """
    folder = Path(folder)
    read = read_run(folder, METHODS)
    method = METHODS[read.method](folder, read.collate)
    model: Any = method.model
    model.to(device)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return Encoder(method, tokenizer, read.collate, read.view, workers=workers)


def _config_of(stated: dict[str, Any]) -> Any:
    """Read the parts of a run's config that say how images and texts reach the model, strictly."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(CollateConfig, "collate")
    parser.add_class_arguments(ViewConfig, "view")
    try:
        read = parser.parse_object({"collate": stated["collate"], "view": stated["data"]["view"]})
    except Exception as error:
        raise ValueError(
            f"{RUN_FILE} does not hold the config of a run of this version ({type(error).__name__})"
        ) from error
    return parser.instantiate(read)


def _as_it_is(batch: list[Canvas]) -> list[Canvas]:
    return batch
