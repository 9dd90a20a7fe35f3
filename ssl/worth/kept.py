"""plan.json: the plan, what it was made for, and its words. It is made once, and the same command follows it."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from ssl import files
from ssl.console import counted, say
from ssl.errors import UserError
from ssl.worth.look import Look
from ssl.worth.measure import Speed
from ssl.worth.plan import Cell, Network, Plan
from ssl.worth.splits import ALL, called
from ssl.worth.starts import NOTHING


@dataclass(frozen=True)
class Agreed:
    """The networks, the plan, the public weights that are not at hand, and the labels of each class at most."""

    networks: list[Network]
    plan: Plan
    left_out: list[str]
    most: int | None = None

    def starts(self) -> dict[str, Network]:
        """{start: its network}, the simplest first: nothing, public weights, own, own after public weights."""
        own, *public = self.networks
        found = {own.starts[0]: own} | {network.name: network for network in public} | {own.starts[1]: own}
        return found | {network.starts[1]: network for network in public if network.name in self.plan.epochs}


def write(path: Path, of: dict, agreed: Agreed) -> None:
    files.write_text(files.json_text({"of": of} | dataclasses.asdict(agreed)), path)


def read(path: Path, of: dict) -> Agreed | None:
    """The plan in the file; None where there is none, or one for something else that nothing was done for.

    `of` has JSON's types. Raises `UserError` for a plan that was made for something else.
    """
    if not path.exists():
        return None
    content = files.json_object(path)
    try:
        before = content["of"]
        for part, values in of.items():
            for name in values.keys() | before[part].keys():
                was, now = before[part].get(name), values.get(name)
                if was != now:
                    if not (path.parent / NOTHING).exists():
                        return None
                    raise UserError(
                        f"output_dir: {path.parent} holds a comparison with another {name} ({was}, now {now}); name "
                        "another --output_dir, or repeat the first command"
                    )
        made = content["plan"] | {
            part: [Cell(**cell) for cell in content["plan"][part]] for part in ("cells", "too_long")
        }
        some = [Network(**one | {"speed": Speed(**one["speed"])}) for one in content["networks"]]
        return Agreed(some, Plan(**made), content["left_out"], content["most"])
    except (KeyError, TypeError, AttributeError):
        raise UserError(f"{path}: is not a plan of this version of ssl.worth; name another --output_dir") from None


def still_at_once(agreed: Agreed | None, fit: int) -> int:
    """How many jobs run side by side: as many as `fit`, or as were planned if those are fewer."""
    planned = agreed.plan.at_once if agreed else fit
    if fit < planned:
        say(f"plan        *** {planned} jobs side by side were planned, and {fit} fit now: it takes longer ***")
    return min(planned, fit)


# Words ------------------------------------------------------------------------------------------


def tell(agreed: Agreed, found: Look) -> None:
    """Print what will be done, how long it takes, and what is left out."""
    made = agreed.plan
    for network in agreed.networks:
        kwargs = f" {network.settings['encoder_kwargs']}" if network.settings["encoder_kwargs"] else ""
        say(
            f"network     {' and '.join(network.starts)}: {network.settings['encoder']}{kwargs}, trained at "
            f"{network.train_size} pixels, judged frozen at {network.judge_size}"
        )
    for words in agreed.left_out:
        say(f"left out    {words}")
    if agreed.most is not None:
        of = f"{found.labels()[ALL]} of {len(found.train)} labels, {agreed.most} of each class at most"
        say(f"labels      *** the minutes are too few for all: `all` stands for {of} ***")
    beside = f", up to {made.at_once} jobs side by side; each one's minutes, summed" if made.at_once > 1 else ""
    say(f"plan        {made.total:.0f} of {made.minutes:.3g} minutes, measured on this machine{beside}:")
    labels = ", ".join(map(called, found.labels()))
    say(f"  frozen    {minutes(made.frozen)}: {len(agreed.starts())} starts, with {labels} labels a class")
    listed = ", ".join(
        f"{network.starts[1]} {counted(made.epochs[network.name], 'epoch')} (train.py alone: {network.recipe_epochs})"
        for network in agreed.networks
        if network.name in made.epochs
    )
    say(f"  pre-train {minutes(made.pretrain)}: {listed}")
    say(f"  fine-tune {minutes(made.tune)}: {'; '.join(_cells(agreed, made.cells))}")
    never = [network.starts[1] for network in agreed.networks if network.name not in made.epochs]
    if never:
        say(f"left out    {', '.join(never)}: the minutes are too few to pre-train")
    if made.too_long:
        say(f"left out    {'; '.join(_cells(agreed, made.too_long))}: these would take {minutes(made.more)} more")


def _cells(agreed: Agreed, cells: list[Cell]) -> list[str]:
    """'nothing and own with all labels (3 seeds), 5 (1 seed)', a line for each network."""
    found = []
    for network in agreed.networks:
        counts = list(dict.fromkeys(cell.count for cell in cells if cell.network == network.name))
        seeds = {n: sum((cell.network, cell.count) == (network.name, n) for cell in cells) for n in counts}
        listed = ", ".join(f"{called(n)} ({counted(seeds[n], 'seed')})" for n in counts)
        starts = " and ".join(start for start, its in agreed.starts().items() if its is network)
        found += [f"{starts} with {listed} labels a class"] if counts else []
    return found


def minutes(count: float) -> str:
    return f"{count:.1f} min" if count < 10 else f"{count:.0f} min"
