"""What CoGaze and its report writing of the published size need: weights counted, the rest measured on a CPU.

python benchmarks/memory.py
"""

import time

import torch
from torch import Tensor
from transformers import BertConfig, BertModel, Dinov2Config, Dinov2Model, GPT2Config

from cogaze.generate import BeamConfig
from cogaze.models.cogaze import CoGazeConfig, CoGazeModel
from cogaze.models.decoder import CrossAttentionDecoder
from cogaze.models.pretrained import TwoTowerModel
from cogaze.models.report import LATENT_FIELDS, ReportModel, new_report_model

IMAGE_PX, VOCABULARY = 518, 50_270  # DistilGPT-2's, and the special tokens
BEGIN, WRITTEN = 50_256, 100  # <|endoftext|>, and the published length of a report, in tokens
CONTEXT, REPORT, SENTENCE, SENTENCES = 40, 120, 20, 2  # tokens, and sentences a sample over a mixture of MIMIC and gaze
ADAMW = 16  # bytes a trained parameter in float32: weight, gradient, two moments
FROZEN = 4  # bytes a frozen parameter
MB = 1e6


def published() -> CoGazeModel:
    """Return a random model of the published size: RAD-DINO is a Dinov2-base, six layers of BERT-base."""
    torch.manual_seed(0)
    vision = Dinov2Model(
        Dinov2Config(hidden_size=768, num_hidden_layers=12, num_attention_heads=12, image_size=IMAGE_PX, patch_size=14)
    )
    text = BertModel(
        BertConfig(num_hidden_layers=6, vocab_size=VOCABULARY, max_position_embeddings=512), add_pooling_layer=False
    )
    return CoGazeModel(
        CoGazeConfig(vision_config=vision.config.to_dict(), text_config=text.config.to_dict()), vision, text
    )


def batch(rows: int) -> dict[str, Tensor]:
    """Return inputs of so many samples."""

    def tokens(texts: int, length: int) -> Tensor:
        return torch.randint(5, VOCABULARY, (texts, length))

    texts = {
        "context": tokens(rows, CONTEXT),
        "report": tokens(rows, REPORT),
        "sentence": tokens(rows * SENTENCES, SENTENCE),
    }
    masks = {f"{name}_mask": torch.ones_like(ids, dtype=torch.bool) for name, ids in texts.items()}
    return {
        "pixel_values": torch.randn(rows, 3, IMAGE_PX, IMAGE_PX),
        "view_position": torch.zeros(rows, dtype=torch.long),
        "has_context": torch.ones(rows, dtype=torch.bool),
        **{f"{name}_input_ids": ids for name, ids in texts.items()},
        **masks,
    }


def writing(encoder: CoGazeModel) -> ReportModel:
    """Return a random model of DistilGPT-2's size on that encoder."""
    decoder = GPT2Config(
        n_layer=6, vocab_size=VOCABULARY, add_cross_attention=True, is_decoder=True, pad_token_id=VOCABULARY - 1
    )
    return new_report_model(encoder, CrossAttentionDecoder(decoder, encoder.config.hidden_size), "tower")


def targets(rows: int) -> dict[str, Tensor]:
    """Return inputs of so many reports to learn from."""
    ids = torch.randint(5, VOCABULARY, (rows, WRITTEN))
    mask = torch.ones_like(ids, dtype=torch.bool)
    seen = {name: tensor for name, tensor in batch(rows).items() if name in (*LATENT_FIELDS, "pixel_values")}
    return {**seen, "target_input_ids": ids, "target_mask": mask, "target_latents": ~mask}


@torch.no_grad()
def seconds_a_report(model: ReportModel, rows: int = 4) -> float:
    """Return how long a report takes that is searched for with 10 beams to its full length, in a batch."""
    inputs = targets(rows)
    begun = torch.full((rows, 1), BEGIN)
    mask = torch.ones_like(begun, dtype=torch.bool)
    ends = {"bos_token_id": BEGIN, "eos_token_id": VOCABULARY - 2, "pad_token_id": VOCABULARY - 1}
    started = time.perf_counter()
    seen = model.see(**{name: inputs[name] for name in inputs if not name.startswith("target")})
    model.decoder.write(seen.latents, begun, mask, ~mask, **ends, **BeamConfig().options(WRITTEN))
    return (time.perf_counter() - started) / rows


def kept_for_backward(model: TwoTowerModel, inputs: dict[str, Tensor]) -> int:
    """Bytes of all tensors other than weights that a forward pass in float32 keeps for its backward pass."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(**inputs)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def told(model: TwoTowerModel, one: dict[str, Tensor], two: dict[str, Tensor]) -> None:
    """Count and measure a model in training, print."""
    model.train()
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    frozen = sum(parameter.numel() for parameter in model.parameters() if not parameter.requires_grad)
    first, second = kept_for_backward(model, one), kept_for_backward(model, two)
    print(f"trained parameters {trained / MB:.1f} M, frozen {frozen / MB:.1f} M")
    print(f"weights, gradients and AdamW's moments in float32: {(ADAMW * trained + FROZEN * frozen) / 1e9:.2f} GB")
    print(f"kept for backward, float32, measured: {(second - first) / MB:.0f} MB a sample, {first / MB:.0f} the first")


def main() -> None:
    """Count, measure, print."""
    encoder = published()
    told(encoder, batch(1), batch(2))
    print(f"({CONTEXT} tokens of context, {REPORT} of report, {SENTENCES} sentences of {SENTENCE})")
    writer = writing(encoder)
    print("report writing:")
    told(writer, targets(1), targets(2))
    print(f"({CONTEXT} tokens of context, {WRITTEN} of report)")
    started = time.perf_counter()
    logits = writer(**targets(4)).logits
    logits.logsumexp(dim=-1).sum().backward()
    step = (time.perf_counter() - started) / 4
    seconds = seconds_a_report(writer.eval())
    print(f"on {torch.get_num_threads()} threads: {step:.1f} s a study in training, {seconds:.1f} s a written report")


if __name__ == "__main__":
    main()
