"""Who is to be active: what the program wants beside what the sites were told. Pure. Knows no topology and no Pulumi.

Each role change raises the epoch of the pair. What is wanted takes effect only with an epoch that is one higher than
the sites' own, so that a program that knows nothing of the last change is refused, not obeyed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from harmony_pulumi.capabilities.site import Operation, Roles, Terms
from harmony_pulumi.errors import SiteError


@dataclass(frozen=True)
class Desired:
    """The roles that a program, or an operator, wants."""

    active: str
    """The role of the member that is to be active."""
    epoch: int
    """Of the change that made it so; 0 for the roles that the members were deployed with."""


def input_problem(before: Desired, after: Desired, names: Mapping[str, str]) -> str | None:
    """Return what is wrong with a change of what is desired, told without asking the sites; None if nothing is."""
    if after.epoch < before.epoch:
        return (
            f"epoch {before.epoch} becomes {after.epoch}, which is older: this program does not know the last role "
            f"change; get the newest one, or write active='{before.active}', epoch={before.epoch}"
        )
    if before.active == after.active:
        return None
    old, new = (f"'{d.active}' ({names[d.active]})" for d in (before, after))
    change = f"active changes from {old} to {new}"
    if after.epoch == before.epoch:
        return f"{change}, and epoch stays {before.epoch}; write epoch={before.epoch + 1} to move the roles"
    return None


def leap_in_words(before: Desired, after: Desired) -> list[str]:
    """Return what to say of an epoch that is raised by more than one, told without asking the sites.

    That is how a stack catches up that was not told of role changes by command; otherwise `up` refuses it.
    """
    if after.epoch <= before.epoch + 1:
        return []
    words = (
        f"epoch {before.epoch} becomes {after.epoch}: `up` refuses that, unless the sites have come to epoch "
        f"{after.epoch - 1} or {after.epoch} by commands that this stack was not told of; else the next one is "
        f"{before.epoch + 1}"
    )
    return [words]


def latest(told: Mapping[str, Roles | None]) -> Roles | None:
    """Return what the sites were told last: the highest epoch, and of equal ones that with an operation under way.

    Args:
        told: by member; None for those that were told nothing, or cannot be asked.
    """
    known = [roles for roles in told.values() if roles is not None]
    return max(known, key=newness, default=None)


def newness(roles: Roles) -> tuple[int, int]:
    """Return by what one thing that was told of a pair is newer than another."""
    return roles["epoch"], _progress(roles)


def leads(roles: Roles) -> bool:
    """Tell whether a member is active, in its pair and in each around that."""
    return all(level["active"] == level["me"] for level in levels(roles))


def of_pair(roles: Roles | None, pair: str) -> tuple[Roles, bool] | None:
    """Return what a site was told of a pair, and whether it leads within its own member of that; None if nothing.

    Of a pair around its own, one that does not lead may have been told less than the one that does.
    """
    speaks = True
    for level in levels(roles):
        if level["pair"] == pair:
            return level, speaks
        speaks = speaks and level["active"] == level["me"]
    return None


def told_of_pair(heard: Mapping[str, Roles | None], pair: str) -> dict[str, tuple[Roles, bool]]:
    """Return of those who were told something of a pair what that is, by name, and as `of_pair` whether they lead."""
    found = {name: of_pair(roles, pair) for name, roles in heard.items()}
    return {name: told for name, told in found.items() if told}


def last_epoch(roles: Roles) -> int:
    """Return the highest epoch that a site was told, of its pair and those around that; 0 if no role was ever moved."""
    return max(level["epoch"] for level in levels(roles))


def outer_of(told: Mapping[str, Roles | None]) -> Roles | None:
    """Return what the members were told last of the pair around theirs; None if there is none."""
    return latest({role: roles["outer"] if roles else None for role, roles in told.items()})


def follows_another(outer: Roles | None, *, deployed: bool) -> bool:
    """Tell whether the leader of a pair is to be a standby of another cluster.

    Args:
        outer: what the pair was told of the one around it, which counts once roles have moved there.
        deployed: whether it was deployed as one that follows.
    """
    return not leads(outer) if outer and last_epoch(outer) else deployed


def levels(roles: Roles | None) -> Iterator[Roles]:
    """Iterate over what a site was told of its pair, of the one around that, and so on."""
    while roles is not None:
        yield roles
        roles = roles["outer"]


def _progress(roles: Roles) -> int:
    operation = roles["operation"]
    if operation is None:
        return 0
    if operation["kind"] == "rejoin":  # Its member that leads is told each stage first, also one that is begun anew.
        return 1 + (roles["me"] == operation["target"])
    return 1 + bool(operation["prepared"]) + bool(operation["token"]) + 2 * bool(operation["given_up"])


def command(under_way: Operation, names: Mapping[str, str]) -> str:
    """Return how to have `harmony` finish what is under way.

    A failover that was given up is begun anew, or refused, by a failover; what takes it back is what goes on with it.
    """
    if under_way["kind"] == "rejoin":
        return "rejoin"
    if under_way["given_up"]:
        return f"switchover --to {names[under_way['target']]}"
    to = f"{under_way['kind']} --to {names[under_way['target']]}"
    return f"{to}{_terms(terms, names[under_way['source']])}" if (terms := under_way["terms"]) else to


def _terms(terms: Terms, source: str) -> str:
    """Return what was accepted, as it was written."""
    unknown = " --accept-unknown-loss" if terms["accept_unknown_loss"] else ""
    fenced = f" --fenced-by-me {source}" if terms["fenced"].startswith("--fenced-by-me") else ""
    return f" --max-data-loss {terms['max_data_loss']}{unknown}{fenced}"


def moves(desired: Desired, told: Roles | None, names: Mapping[str, str]) -> bool:
    """Tell whether roles are to move, so that what is desired comes to be.

    Args:
        desired: what is wanted.
        told: what the sites were told last; None if nothing.
        names: of the members, by role, for messages.

    Raises:
        SiteError: what is desired is not the next thing after what the sites know: it is refused, and the message says
            which numbers to write.
    """
    epoch, active = (told["epoch"], told["active"]) if told else (0, "primary")
    here = f"the sites are at epoch {epoch} with {active} ({names[active]}) active"
    wanted = f"active='{desired.active}' ({names[desired.active]}) at epoch {desired.epoch} is wanted"
    keep = f"active='{active}', epoch={epoch}"
    other = f"active='{desired.active}', epoch={epoch + 1}"
    under_way = told["operation"] if told else None
    if under_way:
        # To be ended, one way or the other, whatever epoch it has come to: given up, it may be past its own.
        if (desired.active, desired.epoch) == (under_way["target"], under_way["epoch"]):
            return True
        target = under_way["target"]
        msg = (
            f"{wanted}, and a {under_way['kind']} to {names[target]}, begun by {under_way['operator']}, has not ended: "
            f"run `harmony {command(under_way, names)}` to finish it, then decide"
        )
        raise SiteError(msg)
    if desired.epoch == epoch and desired.active == active:
        return False
    if desired.epoch == epoch + 1:
        return True
    if desired.epoch < epoch:
        msg = f"{wanted}, but {here}: roles have moved since. Write {keep} to keep them as they are"
        raise SiteError(msg if desired.active == active else f"{msg}, or {other} to move them")
    if desired.epoch == epoch:
        msg = f"{wanted}, but {here}: a change of `active` needs a raised epoch. Write {other} to move the roles"
        raise SiteError(msg)
    msg = f"{wanted}, but {here}: epochs are raised by one. Write {other if desired.active != active else keep}"
    raise SiteError(msg)
