"""What CoGaze of the published size keeps in memory: weights counted, what backward needs measured on a CPU.

python benchmarks/memory.py
"""

import torch
from torch import Tensor
from transformers import BertConfig, BertModel, Dinov2Config, Dinov2Model

from cogaze.models.cogaze import CoGazeConfig, CoGazeModel

IMAGE_PX, VOCABULARY = 518, 50_270  # DistilGPT-2's, and the special tokens
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


def kept_for_backward(model: CoGazeModel, rows: int) -> int:
    """Bytes of all tensors other than weights that a forward pass in float32 keeps for its backward pass."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(**batch(rows))
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def main() -> None:
    """Count, measure, print."""
    model = published().train()
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    frozen = sum(parameter.numel() for parameter in model.parameters() if not parameter.requires_grad)
    one, two = kept_for_backward(model, 1), kept_for_backward(model, 2)
    print(f"trained parameters {trained / MB:.1f} M, frozen {frozen / MB:.1f} M")
    print(f"weights, gradients and AdamW's moments in float32: {(ADAMW * trained + FROZEN * frozen) / 1e9:.2f} GB")
    print(f"kept for backward, float32, measured: {(two - one) / MB:.0f} MB a sample, {one / MB:.0f} MB for the first")
    print(f"({CONTEXT} tokens of context, {REPORT} of report, {SENTENCES} sentences of {SENTENCE})")


if __name__ == "__main__":
    main()
