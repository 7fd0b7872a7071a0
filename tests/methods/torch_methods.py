"""Every method as a plain PyTorch loop, one network at a time: an independent reference, written from the papers.

A loop is a function `(nets, optimizers, views, labels, **options)` that makes one iteration. `views` are the images
that each network gets, one array per network. Formulas are spelt out with exp and log, not shared with the package.
"""

import copy

import torch
from torch import nn


class Tiny(nn.Module):
    """The tiny network of the tests: two convolutions, of which the first is normalised."""

    def __init__(self, channels, width, classes):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, 8, 3, stride=2, padding=1, bias=False)
        self.fc = nn.Linear(8, classes)

    def trunk(self, x):
        return torch.relu(self.bn1(self.conv1(x)))

    def branch(self, x):
        features = torch.relu(self.conv2(x)).mean((2, 3))
        return self.fc(features), features

    def forward(self, x):
        return self.branch(self.trunk(x))


def probs(z, temperature=1.0):
    e = torch.exp(z / temperature)
    return e / e.sum(1, keepdim=True)


def ce(z, y):
    return -torch.log(probs(z)[range(len(y)), y]).mean()


def kl(p, q):
    """KL(p || q), averaged over the batch."""
    return (p * (torch.log(p) - torch.log(q))).sum(1).mean()


def kd_term(learner, source, temperature):
    return temperature**2 * kl(probs(source.detach(), temperature), probs(learner, temperature))


def step(optimizer, loss):
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def eval_logits(net, x):
    net.eval()
    with torch.no_grad():
        z = net(x)[0]
    net.train()
    return z


def independent(nets, optimizers, views, y):
    for net, optimizer, x in zip(nets, optimizers, views, strict=True):
        step(optimizer, ce(net(x)[0], y))


def kd(nets, optimizers, views, y, temperature, alpha):
    teacher = eval_logits(nets[0], views[0])
    for net, optimizer, x in zip(nets[1:], optimizers[1:], views[1:], strict=True):
        z = net(x)[0]
        step(optimizer, (1 - alpha) * ce(z, y) + alpha * kd_term(z, teacher, temperature))


def dgkd(nets, optimizers, views, y, temperature, lam, kept, class_mean=False):
    guides = [eval_logits(net, x) for net, x in zip(nets[:-1], views, strict=False)]
    z = nets[-1](views[-1])[0]
    terms = [kd_term(z, guide, temperature) for guide, keep in zip(guides, kept, strict=True) if keep]
    distilled = sum(terms) / z.shape[1] if class_mean else sum(terms)
    step(optimizers[-1], (1 - lam) * ce(z, y) + lam * distilled)


def dml(nets, optimizers, views, y, temperature):
    zs = [net(x)[0] for net, x in zip(nets, views, strict=True)]
    losses = []
    for i, z in enumerate(zs):
        others = [kd_term(z, other, temperature) for j, other in enumerate(zs) if j != i]
        losses.append(ce(z, y) + sum(others) / len(others))
    for optimizer, loss in zip(optimizers, losses, strict=True):
        step(optimizer, loss)


def dml_of_okddip(nets, optimizers, views, y, temperature, targets):
    """One loss for all networks; targets pass gradients on."""
    zs = [net(x)[0] for net, x in zip(nets, views, strict=True)]
    term = lambda z, target: temperature**2 * kl(probs(target, temperature), probs(z, temperature))  # noqa: E731
    total = sum(ce(z, y) for z in zs)
    for i, z in enumerate(zs):
        others = [other for j, other in enumerate(zs) if j != i]
        if targets == "mean":
            total = total + term(z, sum(others) / len(others))
        else:
            total = total + sum(term(z, other) for other in others) / len(others)
    for optimizer in optimizers:
        optimizer.zero_grad()
    total.backward()
    for optimizer in optimizers:
        optimizer.step()


def dml_in_turn(nets, optimizers, views, y, temperature, targets="each"):
    """One network after the other; a second look moves no statistics."""
    zs = [net(x)[0] for net, x in zip(nets, views, strict=True)]
    newest = [z.detach() for z in zs]
    for i, (net, optimizer, z) in enumerate(zip(nets, optimizers, zs, strict=True)):
        others = [other for j, other in enumerate(newest) if j != i]
        others = [sum(others) / len(others)] if targets == "mean" else others
        step(optimizer, ce(z, y) + sum(kd_term(z, other, temperature) for other in others) / len(others))
        with torch.no_grad():
            newest[i] = copy.deepcopy(net)(views[i])[0]


def mean(zs, y):
    return sum(zs) / len(zs)


def naive(zs, y):
    losses = torch.stack([-torch.log(probs(z)[range(len(y)), y]) for z in zs])
    return torch.stack([zs[int(losses[:, b].argmin())][b] for b in range(len(y))])


def naive_batch(zs, y):
    return min(zs, key=lambda z: ce(z, y))


def minlogit(zs, y):
    return torch.stack([z - z[range(len(y)), y][:, None] for z in zs]).min(0).values


def kdcl(nets, optimizers, views, y, temperature, lam, target):
    """`target` makes the one target of all networks' logits."""
    zs = [net(x)[0] for net, x in zip(nets, views, strict=True)]
    joint = target([z.detach() for z in zs], y)
    losses = [ce(z, y) + lam * kd_term(z, joint, temperature) for z in zs]
    for optimizer, loss in zip(optimizers, losses, strict=True):
        step(optimizer, loss)


def expert_modes(zs, y, num_teachers, teacher_must_lead, exponent="own"):
    """Who is in expert mode: {(teacher, student): bool}."""
    onehot = torch.eye(zs[0].shape[1])[y]
    l1 = lambda p, q: (p - q).abs().sum(1).mean().item()  # noqa: E731
    to_label = [l1(probs(z), onehot) for z in zs]
    expert = {}
    for i in range(num_teachers):
        for j in range(num_teachers, len(zs)):
            t, s = to_label[i], to_label[j]
            t_e, s_e = t, s
            if exponent == "code" and num_teachers == 1:  # 1T2S: always those of the second student
                s_e = to_label[2]
            if exponent == "code" and num_teachers == 2:  # 2T1S: always those of the first teacher
                t_e = to_label[0]
            delta = s - torch.exp(torch.tensor(-t_e / (s_e + t_e))).item() * t
            expert[i, j] = l1(probs(zs[i]), probs(zs[j])) > delta and (t < s or not teacher_must_lead)
    return expert


def switokd(
    nets,
    optimizers,
    views,
    y,
    num_teachers,
    temperature=1.0,
    teacher_must_lead=True,
    paused_statistics="moved",
    exponent="own",
    paused_step="skipped",
):
    """Returns the expert modes, and what they would be if `teacher_must_lead` were the other way."""
    before = [copy.deepcopy(net.bn1.state_dict()) for net in nets]
    zs = [net(x)[0] for net, x in zip(nets, views, strict=True)]
    expert, other = (
        expert_modes(zs, y, num_teachers, must, exponent) for must in (teacher_must_lead, not teacher_must_lead)
    )
    teachers, students = range(num_teachers), range(num_teachers, len(nets))
    losses = {}
    for j in students:
        losses[j] = ce(zs[j], y) + sum(kd_term(zs[j], zs[i], temperature) for i in range(len(nets)) if i != j)
    for i in teachers:
        learning = [j for j in students if not expert[i, j]]
        if learning:
            others = learning + [k for k in teachers if k != i]
            losses[i] = ce(zs[i], y) + sum(kd_term(zs[i], zs[j], temperature) for j in others)
        elif paused_step == "zero_loss":
            losses[i] = 0.0 * ce(zs[i], y)
        elif paused_statistics == "kept":
            nets[i].bn1.load_state_dict(before[i])
    for i, loss in losses.items():
        step(optimizers[i], loss)
    return expert, other


def ramp(progress, fraction):
    return torch.exp(torch.tensor(-5 * (1 - progress / fraction) ** 2)) if progress < fraction else 1.0


def okddip(nets, optimizers, views, y, temperature, weight, projections, head_optimizer, peers_follow_targets=True):
    """`projections[i]` are the (query, key) matrices of peer i, `[dim, width]`."""
    outputs = [net(x) for net, x in zip(nets, views, strict=True)]
    peers, leader = outputs[:-1], outputs[-1][0]
    queries = [features @ query for (_, features), (query, _) in zip(peers, projections, strict=True)]
    keys = [features @ key for (_, features), (_, key) in zip(peers, projections, strict=True)]
    taught = [z if peers_follow_targets else z.detach() for z, _ in peers]
    term = lambda z, target: temperature**2 * kl(probs(target, temperature), probs(z, temperature))  # noqa: E731
    total = ce(leader, y) + weight * term(leader, sum(taught) / len(peers))
    for (z, _), query in zip(peers, queries, strict=True):
        energies = torch.stack([(query * key).sum(1) for key in keys], 1)
        attention = probs(energies)
        target = sum(attention[:, j : j + 1] * other for j, other in enumerate(taught))
        total = total + ce(z, y) + weight * term(z, target)
    for optimizer in (*optimizers, head_optimizer):
        optimizer.zero_grad()
    total.backward()
    for optimizer in (*optimizers, head_optimizer):
        optimizer.step()


class PCL:
    """The network of PCL as one network: a single trunk, a branch for each peer, and the ensemble's classifier."""

    def __init__(self, nets, classifier, make_optimizer):
        self.trunk_net, self.branches, self.classifier = nets[-1], nets, classifier
        for net in nets:
            net.conv1, net.bn1 = self.trunk_net.conv1, self.trunk_net.bn1
        trunk = [*self.trunk_net.conv1.parameters(), *self.trunk_net.bn1.parameters()]
        branches = [p for net in nets for part in (net.conv2, net.fc) for p in part.parameters()]
        self.optimizer = make_optimizer([*trunk, *branches, *classifier.parameters()])
        self.mean_trunk, self.mean_branches = copy.deepcopy(self.trunk_net), [copy.deepcopy(net) for net in nets]
        self.steps = 0

    @staticmethod
    def pass_through(trunk_net, branches, views):
        """Each peer's view through the one trunk; its running statistics follow the mean over the peers."""
        norm, before, after, outputs = trunk_net.bn1, None, [], []
        before = [norm.running_mean.clone(), norm.running_var.clone()]
        for net, x in zip(branches, views, strict=True):
            norm.running_mean, norm.running_var = before[0].clone(), before[1].clone()
            outputs.append(net.branch(trunk_net.trunk(x)))
            after.append([norm.running_mean, norm.running_var])
        norm.running_mean, norm.running_var = (torch.stack(values).mean(0) for values in zip(*after, strict=True))
        return outputs

    def iteration(self, views, y, temperature, weight, decay):
        with torch.no_grad():
            means = [z for z, _ in self.pass_through(self.mean_trunk, self.mean_branches, views)]
        outputs = self.pass_through(self.trunk_net, self.branches, views)
        joint = self.classifier(torch.cat([features for _, features in outputs], 1))
        total = ce(joint, y)
        for i, (z, _) in enumerate(outputs):
            others = [kd_term(z, mean, temperature) for j, mean in enumerate(means) if j != i]
            distilled = kd_term(z, joint, temperature) + sum(others) / len(others)
            total = total + ce(z, y) + weight * distilled
        step(self.optimizer, total)
        d = min(1 - 1 / (self.steps + 1), decay)
        pairs = [(self.mean_trunk, self.trunk_net), *zip(self.mean_branches, self.branches, strict=True)]
        for mean, net in pairs:
            for old, new in zip(mean.parameters(), net.parameters(), strict=True):
                old.data = d * old.data + (1 - d) * new.data
        self.steps += 1


def feedback(losses, size, first=None):
    """How many samples each student hands back, and which, its hardest first; `losses` by student, each `[batch]`.

    `first` by student, each `[batch]`: which samples come before all others."""
    weights = torch.stack([loss.mean() for loss in losses]).exp()
    exact = size * weights / weights.sum()
    counts = exact.floor().int()
    for j in torch.argsort(counts - exact, stable=True)[: size - int(counts.sum())]:
        counts[j] += 1
    first = first or [torch.zeros(len(loss), dtype=torch.bool) for loss in losses]
    handed = []
    for loss, early, n in zip(losses, first, counts.tolist(), strict=True):
        order = sorted(range(len(loss)), key=lambda j, loss=loss, early=early: (not early[j], -loss[j].item()))
        handed.append(torch.tensor(order[:n], dtype=torch.long))
    return counts, torch.cat(handed)


def orc(
    nets,
    optimizers,
    pivot_optimizer,
    x,
    y,
    lam,
    k=1,
    order="after",
    teaching="individual",
    beta=0.5,
    temperature=4.0,
    fraction=1.0,
    pivot_statistics="running",
    fixed=(),
    rule="hardest",
):
    """Returns who was promoted, how many samples each student handed back, and the loss of the pivot teacher as it
    teaches. `lam` is the mix-up ratio."""
    students = range(1 + len(fixed), len(nets))
    # Evaluation. Running statistics move once per iteration, with this pass.
    seen = {i: nets[i](x)[0] for i in students}
    losses = {i: -torch.log(probs(seen[i])[range(len(y)), y]).detach() for i in students}
    promoted = [] if fixed else sorted(students, key=lambda i: losses[i].mean())[:k]
    rest = [i for i in students if i not in promoted]
    wrong = [seen[i].argmax(1) != y for i in students] if rule == "misclassified" else None
    counts, handed = feedback(list(losses.values()), max(1, round(fraction * len(y))), wrong)
    handed = torch.tensor([int(handed[i % len(handed)]) for i in range(len(y))])  # repeated if there are fewer
    # Intensive teaching.
    mixed = nets[0](lam * x + (1 - lam) * x[handed])[0]
    step(pivot_optimizer, lam * ce(mixed, y) + (1 - lam) * ce(mixed, y[handed]))
    if pivot_statistics == "running":
        pivot = eval_logits(nets[0], x)
    else:
        with torch.no_grad():
            pivot = copy.deepcopy(nets[0])(x)[0]  # the copy's statistics move, not the network's
    # Private teaching, then group teaching.
    for i in promoted:
        step(optimizers[i], (1 - beta) * ce(seen[i], y) + beta * kd_term(seen[i], pivot, temperature))
    now = {i: eval_logits(nets[i], x) for i in fixed}
    for i in promoted:
        if order == "before":
            now[i] = seen[i].detach()
        else:
            with torch.no_grad():
                now[i] = copy.deepcopy(nets[i])(x)[0]
    for i in rest:
        teachers = [pivot, *now.values()]
        if teaching == "ensemble":
            teachers = [sum(teachers) / len(teachers)]
        terms = [kd_term(seen[i], z, temperature) for z in teachers]
        step(optimizers[i], (1 - beta) * ce(seen[i], y) + beta * sum(terms))
    handed_back = dict(zip(students, counts.tolist(), strict=True))
    return {"promoted": promoted, "handed_back": handed_back, "pivot_loss": ce(pivot, y).item()}
