"""One ORC iteration written the obvious way in PyTorch: a list of networks, one after the other, in eager mode.

It needs a pass of its own to rank the students, and every teaching is a loop. It is what `scripts.bench` compares with,
in a process of its own, so that neither library's threads and memory are in the other's way:

python -m scripts.bench_torch resnet20,resnet20,resnet20 128 float32

For each line that it reads, "eager" or "compiled", it makes one iteration; "clock" makes none. The answer is always a
line with the CPU seconds that this process has computed so far.
"""

import sys
import time
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F

from tests.torch_models import MODELS

TEMPERATURE, BETA = 4.0, 0.5


def device() -> str:
    """Where PyTorch would train here."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def distillation(logits_s: torch.Tensor, logits_t: torch.Tensor) -> torch.Tensor:
    log_probs, targets = F.log_softmax(logits_s / TEMPERATURE, 1), F.softmax(logits_t / TEMPERATURE, 1)
    return F.kl_div(log_probs, targets, reduction="batchmean") * TEMPERATURE**2


def orc_iteration(architectures: Sequence[str], batch: int, dtype: str, *, compiled: bool) -> Callable[[], None]:
    """A function that makes one iteration on random 32x32 images of 100 classes, k = 1.

    Args:
        architectures: in member order; all members are kept in float32.
        batch: images.
        dtype: "float32", or "bfloat16" by autocast.
        compiled: each network goes through `torch.compile`.
    """
    place = device()
    torch.backends.cudnn.benchmark = True  # the fastest of cuDNN's convolutions, as XLA takes them
    networks = [MODELS[name](100).to(place).train() for name in architectures]
    optimizers = [torch.optim.SGD(n.parameters(), 0.05, momentum=0.9, weight_decay=5e-4) for n in networks]
    if compiled:
        networks = [torch.compile(network) for network in networks]
    pivot, students = networks[0], networks[1:]
    images = torch.rand(batch, 3, 32, 32, device=place)
    labels = torch.randint(0, 100, (batch,), device=place)

    def update(network, optimizer, loss, inputs):
        optimizer.zero_grad()
        loss(network(inputs)[0].float()).backward()
        optimizer.step()

    def iterate():
        with torch.no_grad():
            losses = torch.stack([F.cross_entropy(s(images)[0].float(), labels, reduction="none") for s in students])
        promoted = int(losses.mean(1).argmin())
        shares = (torch.softmax(losses.mean(1), 0) * batch).round().long().tolist()
        hardest = [order[:share] for order, share in zip(losses.argsort(1, descending=True), shares, strict=True)]
        partner = torch.cat([*hardest, torch.arange(batch, device=place)])[:batch]
        lam = float(torch.distributions.Beta(1.0, 1.0).sample())
        mixed, others = lam * images + (1 - lam) * images[partner], labels[partner]
        mixup = lambda out: lam * F.cross_entropy(out, labels) + (1 - lam) * F.cross_entropy(out, others)  # noqa: E731
        update(pivot, optimizers[0], mixup, mixed)
        with torch.no_grad():
            pivot.eval()
            logits_p = pivot(images)[0].float()
            pivot.train()

        def teaching(teachers):
            def loss(out):
                guided = sum(distillation(out, logits) for logits in teachers)
                return (1 - BETA) * F.cross_entropy(out, labels) + BETA * guided

            return loss

        update(students[promoted], optimizers[1 + promoted], teaching([logits_p]), images)
        with torch.no_grad():
            logits_t = students[promoted](images)[0].float()
        for i, student in enumerate(students):
            if i != promoted:
                update(student, optimizers[1 + i], teaching([logits_p, logits_t]), images)

    def run():
        with torch.autocast(place, torch.bfloat16, enabled=dtype == "bfloat16"):
            iterate()
        if place == "cuda":
            torch.cuda.synchronize()

    return run


def main() -> None:
    architectures, batch, dtype = sys.argv[1].split(","), int(sys.argv[2]), sys.argv[3]
    iterations = {}
    for line in sys.stdin:
        name = line.strip()
        if name != "clock":
            if name not in iterations:
                iterations[name] = orc_iteration(architectures, batch, dtype, compiled=name == "compiled")
            iterations[name]()
        print(time.process_time(), flush=True)


if __name__ == "__main__":
    main()
