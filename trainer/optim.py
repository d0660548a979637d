"""The optimizer step: AdamW, the One-Cycle schedule, loss scaling and clipping, all on the device.

torch.optim is not used: constructing any of its optimizers imports torch._dynamo and sympy, which takes longer than the
rest of a warm start. The same fused kernels are called here. Nothing waits for the device, and every state is a tensor
that is updated in place, so a step can be captured in a CUDA graph.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn


class AdamW:
    """AdamW with decoupled weight decay (Loshchilov & Hutter 2019) through PyTorch's fused kernel.

    Weight decay applies to parameters with two or more dimensions that are not called a bias: biases, norms and scales
    are not decayed. All trainable parameters must lie on one device and have one dtype.

    Attributes:
        lr: the learning rate, a float32 scalar tensor on the device; set it between steps with `lr.fill_(value)`.
        steps: the updates made, a float32 scalar tensor (as the kernel wants it).
        skipped: the updates skipped because of non-finite gradients, an int64 scalar tensor.
    """

    def __init__(
        self,
        named_parameters: Iterable[tuple[str, nn.Parameter]],
        lr: float,
        weight_decay: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        self.parameters = {name: parameter for name, parameter in named_parameters if parameter.requires_grad}
        if not self.parameters:
            raise ValueError("the model has no trainable parameters")
        device = next(iter(self.parameters.values())).device
        self.betas = betas
        self.eps = eps
        self.lr = torch.full((), lr, dtype=torch.float32, device=device)
        self.steps = torch.zeros((), dtype=torch.float32, device=device)
        self.skipped = torch.zeros((), dtype=torch.int64, device=device)
        self.exp_avg = {name: torch.zeros_like(parameter) for name, parameter in self.parameters.items()}
        self.exp_avg_sq = {name: torch.zeros_like(parameter) for name, parameter in self.parameters.items()}
        decayed = [name for name, one in self.parameters.items() if one.ndim >= 2 and not name.endswith("bias")]
        self._groups = ((weight_decay, decayed), (0.0, [name for name in self.parameters if name not in decayed]))

    def gradients(self) -> list[Tensor]:
        """Give the gradients themselves (not copies), in the order of the parameters.

        Raises:
            ValueError: if a parameter has none: the loss does not depend on it, or backward() has not run.
        """
        missing = [name for name, parameter in self.parameters.items() if parameter.grad is None]
        if missing:
            raise ValueError(
                f"no gradient reached {', '.join(missing)}: freeze it with requires_grad_(False) or use it"
            )
        return [parameter.grad for parameter in self.parameters.values() if parameter.grad is not None]

    @torch.no_grad()
    def step(self, found_inf: Tensor | None = None) -> None:
        """Update every parameter, or, where the float32 scalar `found_inf` is 1, none; decided on the device."""
        gradients = dict(zip(self.parameters, self.gradients(), strict=True))
        if found_inf is None:
            self.steps += 1
        else:
            self.steps += 1 - found_inf
            self.skipped += found_inf.long()
        for weight_decay, names in self._groups:
            if not names:
                continue
            torch._fused_adamw_(
                [self.parameters[name] for name in names],
                [gradients[name] for name in names],
                [self.exp_avg[name] for name in names],
                [self.exp_avg_sq[name] for name in names],
                [],
                # The kernel only reads the step: all parameters share one.
                [self.steps] * len(names),
                lr=self.lr,
                beta1=self.betas[0],
                beta2=self.betas[1],
                weight_decay=weight_decay,
                eps=self.eps,
                amsgrad=False,
                maximize=False,
                found_inf=found_inf,
            )

    def state_tensors(self) -> dict[str, Tensor]:
        """Give the state by name, for a checkpoint: the live tensors, which the next step changes."""
        moments = {f"exp_avg.{name}": tensor for name, tensor in self.exp_avg.items()}
        moments |= {f"exp_avg_sq.{name}": tensor for name, tensor in self.exp_avg_sq.items()}
        return moments | {"steps": self.steps, "skipped": self.skipped}

    def load_state_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Copy a state from `state_tensors` into this optimizer; raises ValueError if it is another model's."""
        copy_state(self.state_tensors(), tensors, "optimizer state")


class LossScaler:
    """Dynamic loss scaling for float16 (Micikevicius et al. 2018), as torch.amp.GradScaler, but decided on the device.

    When not `enabled` the scale is 1 and stays 1; gradients are checked for non-finite values all the same.

    Attributes:
        factor: the loss scale, a float32 scalar tensor.
        growth: updates since the scale last changed, an int32 scalar tensor.
    """

    def __init__(
        self,
        enabled: bool,
        device: torch.device | str,
        init_scale: float = 2.0**16,
        growth_factor: float = 2.0,
        backoff_factor: float = 0.5,
        growth_interval: int = 2000,
    ) -> None:
        self.enabled = enabled
        self.growth_factor = growth_factor
        self.backoff_factor = backoff_factor
        self.growth_interval = growth_interval
        self.factor = torch.full((), init_scale if enabled else 1.0, dtype=torch.float32, device=device)
        self.growth = torch.zeros((), dtype=torch.int32, device=device)

    def scale(self, loss: Tensor) -> Tensor:
        """Multiply the loss, so that small gradients do not underflow."""
        scaled: Tensor = loss * self.factor
        return scaled

    @torch.no_grad()
    def unscale(self, gradients: list[Tensor]) -> Tensor:
        """Divide the gradients by the scale in place and give 1.0 if any is not finite, else 0.0 (float32 scalar)."""
        found_inf = torch.zeros_like(self.factor)
        torch._amp_foreach_non_finite_check_and_unscale_(
            gradients, found_inf, self.factor.double().reciprocal().float()
        )
        return found_inf

    @torch.no_grad()
    def update(self, found_inf: Tensor) -> None:
        """Lower the scale after an overflow, raise it after `growth_interval` steps without one."""
        if self.enabled:
            torch._amp_update_scale_(
                self.factor, self.growth, found_inf, self.growth_factor, self.backoff_factor, self.growth_interval
            )

    def state_tensors(self) -> dict[str, Tensor]:
        """Give the state by name, for a checkpoint: the live tensors."""
        return {"factor": self.factor, "growth": self.growth}

    def load_state_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Copy a state from `state_tensors` into this scaler; raises ValueError if names or shapes differ."""
        copy_state(self.state_tensors(), tensors, "loss scaler state")


@torch.no_grad()
def clip_gradients(gradients: list[Tensor], max_norm: float) -> Tensor:
    """Scale gradients in place so that their total Euclidean norm is at most `max_norm`; give the norm before.

    The arithmetic of torch.nn.utils.clip_grad_norm_ (Pascanu et al. 2013), which leaves smaller gradients as they are.
    """
    norm: Tensor = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients, 2.0)))
    torch._foreach_mul_(gradients, (max_norm / (norm + 1e-6)).clamp(max=1.0))
    return norm


def one_cycle(
    total_steps: int,
    max_lr: float,
    warmup_fraction: float,
    div_factor: float = 25.0,
    final_div_factor: float = 1e4,
) -> Tensor:
    """Give the learning rate of every step, float64 [total_steps]: the values of torch.optim.lr_scheduler.OneCycleLR.

    Two half cosines: from max_lr/div_factor up to max_lr at step warmup_fraction · total_steps − 1, then down to
    max_lr/(div_factor · final_div_factor) at the last step (Smith & Topin 2018, "Super-convergence").

    Raises:
        ValueError: if `warmup_fraction` is outside [0, 1].
    """
    if not 0 <= warmup_fraction <= 1:
        raise ValueError(f"warmup_fraction is {warmup_fraction}: it must lie in [0, 1]")
    initial_lr = max_lr / div_factor
    peak_step, last_step = warmup_fraction * total_steps - 1, total_steps - 1
    step = torch.arange(total_steps, dtype=torch.float64)
    rising = _half_cosine(initial_lr, max_lr, step / peak_step if peak_step > 0 else step)
    falling = _half_cosine(max_lr, initial_lr / final_div_factor, (step - peak_step) / max(last_step - peak_step, 1e-9))
    return torch.where(step < peak_step, rising, falling)


def copy_state(own: dict[str, Tensor], given: dict[str, Tensor], what: str) -> None:
    """Copy `given` tensors into `own` of the same names and shapes; raises ValueError that names the differences."""
    problems = [f"{name} is missing" for name in own.keys() - given.keys()]
    problems += [f"{name} is unknown" for name in given.keys() - own.keys()]
    problems += [
        f"{name} has shape {tuple(given[name].shape)}, not {tuple(own[name].shape)}"
        for name in own.keys() & given.keys()
        if own[name].shape != given[name].shape
    ]
    if problems:
        raise ValueError(f"{what} does not fit the model: {'; '.join(sorted(problems))}")
    for name, tensor in own.items():
        tensor.copy_(given[name])


def _half_cosine(start: float, end: float, share: Tensor) -> Tensor:
    return end + (start - end) / 2 * ((torch.pi * share).cos() + 1)
