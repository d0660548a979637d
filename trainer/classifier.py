"""The model of the task `classify`: the shared encoder with a head for every label.

Shape suffixes: B batch, L bars, C channels of a bar, M latents, D d_model, K classes.
"""

import torch
import torch.nn.functional as F  # noqa: N812 - PyTorch's own convention
from torch import Tensor, nn

from trainer.config import ModelConfig
from trainer.model import WindowModel


class Classifier(WindowModel):
    """Tell the classes of whole windows, label by label.

    The latents that hold anything but padding are pooled, by their mean and by their largest value channel by channel,
    and a linear map a label makes the classes' logits of it.

    Args:
        n_features: F, features per bar.
        seq_lens, bar_lengths, settings: as of the backbone; `settings.dropout` is on the pooled latents too.
        n_classes: K, for each label.
    """

    def __init__(
        self,
        n_features: int,
        seq_lens: tuple[int, ...],
        bar_lengths: tuple[int, ...],
        settings: ModelConfig,
        n_classes: tuple[int, ...],
    ) -> None:
        super().__init__(n_features, 0, seq_lens, bar_lengths, settings)
        width = 2 * settings.d_model
        self.dropout = nn.Dropout(settings.dropout)
        self.norm = nn.LayerNorm(width)
        self.heads = nn.ModuleList(nn.Linear(width, count) for count in n_classes)
        for parameter in self.heads.parameters():
            nn.init.normal_(parameter, std=0.02)

    def forward(self, x: list[Tensor]) -> list[Tensor]:
        """Classify: features and mask channel [B, L_j, C] per stream → logits [B, K] per label."""
        latents_BMD = torch.cat(self.latents(x), dim=1)
        hidden = [x_BLC[..., self.n_features] for x_BLC in x]
        empty_BM1 = torch.cat([self._all_hidden(one) for one in hidden], dim=1)[..., None]
        mean_BD = latents_BMD.masked_fill(empty_BM1, 0).sum(dim=1) / (~empty_BM1).sum(dim=1)
        most_BD = latents_BMD.masked_fill(empty_BM1, -torch.inf).amax(dim=1)
        pooled_BD = self.dropout(self.norm(torch.cat([mean_BD, most_BD], dim=1)))
        return [head(pooled_BD) for head in self.heads]

    def head_products(self) -> int:
        """Multiplications that the heads take for a window."""
        return sum(parameter.numel() for parameter in self.heads.parameters() if parameter.ndim == 2)

    def _all_hidden(self, hidden_BL: Tensor) -> Tensor:
        """Which latents have hidden bars only: bool [B, M]."""
        stride = self.backbone.latent_stride
        padded = F.pad(hidden_BL, (-hidden_BL.shape[1] % stride, 0), value=1)
        hidden_BM: Tensor = padded.unflatten(1, (-1, stride)).amin(dim=2)
        return hidden_BM > 0
