"""The PyTorch side of `benchmarks.speed`, for the same weights and inputs as the JAX side.

Written as a user who cares for speed would write it: fused Adam, multi-tensor averaging, autocast, no
gradients kept at inference, and everything between data and loss inside `torch.compile`.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from benchmarks.speed_jax import CLIP, Problem, Program, run_twice
from benchmarks.torch_unet import TorchUNet
from mbti_jax.diffusion.samplers import ddim
from mbti_jax.interop.names import to_guided_diffusion


@dataclass(frozen=True)
class TorchSide:
    """The same in PyTorch on `device`, eager or compiled, NCHW tensors in either memory layout.

    bfloat16 is autocast over float32 weights, which is also what the JAX network does.
    """

    problem: Problem
    device: str
    compiled: bool
    channels_last: bool

    def prepare(self, section: str) -> Program:
        """Builds and runs twice the work called 'forward', 'sampler' or 'train_step'."""
        on_gpu = self.device == "cuda"
        before = torch.cuda.memory_allocated() if on_gpu else 0
        start = time.perf_counter()
        run = getattr(self, f"_{section}")()
        outputs, extra = run_twice(run, self._wait, start, self._start_counting)
        peak = torch.cuda.max_memory_allocated() - before if on_gpu else None
        return Program(run, self._wait, extra, peak, np.stack([_to_numpy(o) for o in outputs]))

    def _forward(self):
        x_0, eps, t, roi_masks, class_vector = self._inputs()
        x = torch.cat([_corrupt(self._tables(), x_0, eps, t, roi_masks), roi_masks], dim=1)
        x = x.contiguous(memory_format=self._format)
        network = self._faster(self._network())

        @torch.inference_mode()
        def run():
            return network(x, t, class_vector)

        return run

    def _sampler(self):
        problem, process = self.problem, self.problem.pipeline.process
        x_0, eps, _, roi_masks, class_vector = self._inputs()
        roi = (roi_masks > 0).any(dim=1, keepdim=True)
        classes = torch.cat([class_vector, torch.zeros_like(class_vector)])
        network, tables, w = self._network(), self._tables(), problem.sampling.guidance.weight
        t = problem.sampling.timesteps(process.num_timesteps)
        table = ddim.table(process, t, problem.sampling.eta)

        def step(x_t, t, x_0_factor, x_t_factor):
            t = t.expand(len(x_t))
            x = torch.cat([x_t, roi_masks], dim=1)
            conditional, null = network(torch.cat([x, x]), torch.cat([t, t]), classes).chunk(2)
            prediction = (1 + w) * conditional - w * null
            estimate = _to_x_0(process.prediction, tables, prediction, x_t, t).clamp(*CLIP)
            return torch.where(roi, x_0_factor * estimate + x_t_factor * x_t, x_0)

        step = self._faster(step)
        columns = [
            torch.tensor(column, device=self.device)
            for column in (table.t, table.x_0_factor, table.x_t_factor)
        ]

        @torch.inference_mode()
        def run():
            x_t = torch.where(roi, eps, x_0)
            for t, x_0_factor, x_t_factor in zip(*columns, strict=True):
                x_t = step(x_t, t, x_0_factor, x_t_factor)
            return x_t

        return run

    def _train_step(self):
        problem, process = self.problem, self.problem.pipeline.process
        inputs, tables = self._inputs(), self._tables()
        network = self._network()
        params = list(network.parameters())
        optimizer = torch.optim.Adam(
            params, lr=problem.settings.optimizer.learning_rate, fused=True
        )
        averages = [param.detach().clone() for param in params]
        updates = 0

        def loss_of(x_0, eps, t, roi_masks, class_vector):
            roi = (roi_masks > 0).any(dim=1, keepdim=True)
            x_t = _corrupt(tables, x_0, eps, t, roi_masks)
            prediction = network(torch.cat([x_t, roi_masks], dim=1), t, class_vector)
            target = _target(process.prediction, tables, x_0, eps, t)
            error = torch.where(roi, prediction - target, 0.0)
            return error.square().sum() / (roi.sum() * x_0.shape[1])

        loss_of = self._faster(loss_of)

        def run():
            nonlocal updates
            optimizer.zero_grad(set_to_none=True)
            loss = loss_of(*inputs)
            loss.backward()
            optimizer.step()
            decay = min(problem.settings.ema_decay, (1 + updates) / (10 + updates))
            torch._foreach_lerp_(averages, [param.detach() for param in params], 1 - decay)
            updates += 1
            return loss.detach()

        return run

    @property
    def _format(self) -> torch.memory_format:
        return torch.channels_last if self.channels_last else torch.contiguous_format

    def _inputs(self) -> list[torch.Tensor]:
        x_0, eps, t, condition = self.problem.inputs
        arrays = (x_0, eps, t, condition.roi_masks, condition.class_vector)
        return [self._tensor(array) for array in arrays]

    def _tensor(self, array: np.ndarray) -> torch.Tensor:
        tensor = torch.tensor(array, device=self.device)
        if tensor.ndim == 4:
            tensor = tensor.permute(0, 3, 1, 2).contiguous(memory_format=self._format)
        return tensor

    def _tables(self) -> tuple[torch.Tensor, torch.Tensor]:
        """alpha and sigma by timestep, float32 [T, 1, 1, 1]."""
        process = self.problem.pipeline.process
        t = np.arange(process.num_timesteps)
        return tuple(
            torch.tensor(table, dtype=torch.float32, device=self.device)[:, None, None, None]
            for table in (process.alpha(t), process.sigma(t))
        )

    def _network(self) -> torch.nn.Module:
        model = self.problem.pipeline.model
        twin = TorchUNet(
            **{k: getattr(model, k) for k in model.__dataclass_fields__ if k != "name"}
        )
        weights = to_guided_diffusion(self.problem.params)
        twin.load_state_dict({name: torch.tensor(value) for name, value in weights.items()})
        twin.to(self.device, memory_format=self._format)
        return _Autocast(twin, self.device, enabled=model.dtype == "bfloat16")

    def _faster(self, function: Callable) -> Callable:
        return torch.compile(function, dynamic=False) if self.compiled else function

    def _wait(self, output: torch.Tensor) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()

    def _start_counting(self) -> None:
        if self.device == "cuda":
            torch.cuda.reset_peak_memory_stats()


class _Autocast(torch.nn.Module):
    """A network that computes in bfloat16 where PyTorch thinks it safe, and returns float32."""

    def __init__(self, network: torch.nn.Module, device: str, enabled: bool):
        super().__init__()
        self.network, self.device, self.enabled = network, device, enabled

    def forward(self, x, t, class_vector):
        with torch.autocast(self.device, torch.bfloat16, enabled=self.enabled):
            return self.network(x, t, class_vector).float()


def _corrupt(tables, x_0, eps, t, roi_masks):
    a, s = (table[t] for table in tables)
    return torch.where((roi_masks > 0).any(dim=1, keepdim=True), a * x_0 + s * eps, x_0)


def _target(prediction, tables, x_0, eps, t):
    a, s = (table[t] for table in tables)
    return {"eps": lambda: eps, "x_0": lambda: x_0, "v": lambda: a * eps - s * x_0}[prediction]()


def _to_x_0(prediction, tables, output, x_t, t):
    a, s = (table[t] for table in tables)
    if prediction == "x_0":
        return output
    return (x_t - s * output) / a if prediction == "eps" else a * x_t - s * output


def _to_numpy(output: torch.Tensor) -> np.ndarray:
    output = output.permute(0, 2, 3, 1) if output.ndim == 4 else output
    return output.float().cpu().numpy()
