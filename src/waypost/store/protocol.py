"""The home of what a store promises.  These docstrings are its law.

An engine keeps messages, deliveries, the log, dead letters, queues, URL groups,
tenants and keys; `waypost.store.sqlite` is one.  Every engine passes the suite in
`tests/store`.

- What a call has returned is on disk: a 2xx may follow.
- A call is atomic.  Calls that wait at the same moment may share a transaction,
  but never a fault: where a shared one fails, its calls run singly, and only
  the guilty one raises.  A full disk, an I/O error and a lost database are
  nobody's fault, and everyone gets `StoreFull` or `StoreUnavailable`.
- No engine reads a clock: time comes in as `now_ms`.
- No call crosses tenants but `claim`, `settle`, `release` and upkeep.
- Readers see what is committed, and never wait for a writer.

A delivery waits in one *lane* (its queue; else its flow-control key; else its
tenant and host; a suspect without a queue in one that the tenant's suspects, or
those of its key, have for themselves), and is admitted against the resources
that it names (queue, key, host, node).  A queue's place is a *hold*: a row
written by the claim and deleted by the settle that ends the message.  A key's
permit is one too, deleted by the settle that ends the attempt.  Places of a
host and of the node are this process's own and live in `Places`.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

from msgspec import Struct

from waypost.domain.attempt import Outcome, Verdict
from waypost.domain.callbacks import Report
from waypost.domain.filters import EVERYTHING, Filter
from waypost.domain.flow import FlowKey
from waypost.domain.message import Logged, Message
from waypost.domain.places import SUSPECT_AFTER, Places, Sign
from waypost.domain.schedules import Schedule
from waypost.domain.signing import SigningKeys
from waypost.domain.url_groups import UrlGroup

COUNT_MAX = 1 << 62
"""As many as there may be."""

BYTES_MAX = 1 << 62
"""As large as it may be."""


class Draft(Struct, frozen=True, kw_only=True):
    """A message that asks to be accepted.

    A callback has a `report` in place of a body, which is built from it and the
    message that it is about.  `dedup_key` is None where the publisher asked for no
    deduplication; else the key is taken until `dedup_until_ms`.
    """

    message: Message
    body: bytes = b""
    report: Report | None = None
    host: str
    dedup_key: str | None = None
    dedup_until_ms: int = 0


class Claim(Struct, frozen=True, kw_only=True):
    """The right to attempt one delivery, once.

    `token` only grows: a settle with an older one is stale.  `retried` counts
    the retries already made, and `interrupted` the attempts that a crash cut
    short.  `lease` says under which of the node's leases it was made, where it has
    any.
    """

    number: int
    token: int
    message: Message
    body: bytes
    host: str
    retried: int = 0
    interrupted: int = 0
    lease: int = 0


class Births(Struct, frozen=True):
    """What a store needs to let messages be born claimed: the places that they take, and
    who is given the claims."""

    places: Places
    hand_over: Callable[[Claim], None]


def take_place(places: Places, claim: Claim) -> None:
    """Begin the attempt of a claim."""
    places.take(claim.host, size=len(claim.body), suspect=claim.interrupted >= SUSPECT_AFTER)


def give_back_place(places: Places, claim: Claim, sign: Sign, *, lingers: bool = False) -> None:
    """End the attempt of a claim, and learn from it."""
    places.give_back(
        claim.host,
        sign,
        size=len(claim.body),
        suspect=claim.interrupted >= SUSPECT_AFTER,
        lingers=lingers,
    )


class Accepted(Struct, frozen=True, kw_only=True):
    """What became of a draft: its id, or the id of the first of its kind."""

    message_id: str
    deduplicated: bool = False


class Claimed(Struct, frozen=True, kw_only=True):
    """What a claim handed out, and when the next message that may go falls due.

    A `next_due_ms` that has passed says that there is more to claim now; None,
    that nothing waits that could go.
    """

    claims: list[Claim]
    next_due_ms: int | None


class Cancelled(Struct, frozen=True, kw_only=True):
    """How many deliveries a cancel reached, in flight ones too; `known` says
    whether there is such a message at all (D16)."""

    count: int
    known: bool


class LogEntry(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One line of the log, with the message it speaks of.

    Response fields are those of an ERROR.
    """

    time_ms: int
    state: Logged
    message: Message
    body: bytes
    next_delivery_ms: int | None = None
    error: str | None = None
    response_status: int | None = None
    response_header: dict[str, list[str]] | None = None
    response_body: bytes | None = None


class LogFilter(Struct, frozen=True, kw_only=True):
    """Which entries are asked for: those in any of the states (all, where there is none) that
    speak of the messages that are meant.  The dates of the filter are the entries' own."""

    of: Filter = EVERYTHING
    states: Sequence[Logged] = ()


class LogView(Struct, frozen=True, kw_only=True):
    """How a log is paged through.

    `by_message`: the entries that are asked for are gathered by message, and a
    message counts as one.  Without `bodies` neither those nor the answers' are read.
    """

    latest_first: bool = True
    by_message: bool = False
    bodies: bool = True


LATEST_FIRST = LogView()


class DeadLetter(Struct, frozen=True, kw_only=True):
    """A message that ended without success, and the last answer it got."""

    id: str
    failed_ms: int
    message: Message
    body: bytes
    why: str
    response_status: int = 0
    response_header: dict[str, list[str]] | None = None
    response_body: bytes = b""


class Queue(Struct, frozen=True, kw_only=True):
    """A queue and how many of its messages are not yet done (`lag`)."""

    name: str
    parallelism: int
    paused: bool
    created_ms: int
    updated_ms: int
    lag: int


class Emptied(Struct, frozen=True, kw_only=True):
    """How far the end of a queue has come: `mark` is for the next call, and None once it
    has ended."""

    cancelled: int
    mark: int | None


class FlowKeyState(Struct, frozen=True, kw_only=True):
    """A flow-control key, how many of its messages are due and `waiting`, whatever holds them
    up, and how many of their attempts are under way (`in_use`)."""

    key: FlowKey
    waiting: int
    in_use: int


class ScheduleSeen(Struct, frozen=True, kw_only=True):
    """A schedule, its body, and the log's last word on each message of its latest run; those
    that are no longer kept are missing."""

    schedule: Schedule
    body: bytes
    run: dict[str, Logged]


class DueSchedules(Struct, frozen=True, kw_only=True):
    """Schedules that are due, with their bodies, and when the next one after them is.

    `unreadable` are those that are due and of which the store cannot make sense, each by
    its tenant and id: what wrote them was another version, or no version at all.
    """

    due: list[tuple[Schedule, bytes]]
    unreadable: list[tuple[str, str]] = []
    next_ms: int | None


class Token(Struct, frozen=True, kw_only=True):
    """An API token, known by its hash only."""

    id: str
    tenant: str
    sha256: bytes
    read_only: bool
    created_ms: int


class Tenant(Struct, frozen=True, kw_only=True):
    """Whoever owns messages, tokens and signing keys."""

    id: str
    created_ms: int
    keys: SigningKeys
    revoked: bool = False


class LogPage(Struct, frozen=True):
    """Part of the log; `cursor` is None at its end (D35)."""

    entries: list[LogEntry]
    cursor: str | None


class Found(Struct, frozen=True):
    """Some ids of what was looked for; `cursor` is None once all has been looked at."""

    ids: list[str]
    cursor: str | None


class DeadLetterPage(Struct, frozen=True):
    """Part of the dead letter queue; `cursor` is None at its end.

    `size` is about how many bytes it has.  It is `full` where its count or its bytes ended it.
    """

    dead_letters: list[DeadLetter]
    cursor: str | None
    size: int
    full: bool


class Pulse(Struct, frozen=True, kw_only=True):
    """How the store is: what readiness and the metrics are made of.

    `due` are those of the `waiting` whose time has come, whatever holds them up.
    `oldest_due_ms` tells how far claiming is behind: since when the lane that has
    waited longest for its turn has done so, None where no lane is ready.  A lane
    joins the line when its head falls due, when it was served and has more, and
    when a full or paused queue has a place; one that a host had no place for, or a key no
    permit, keeps its turn: what a message waited before that is not counted.  `free_bytes` is
    BYTES_MAX where the disk is not the store's to see.  `refusing` is None, or why publishes
    are refused.  In a large store the counts may be some seconds old.
    """

    waiting: int
    due: int
    claimed: int
    dead_letters: int
    oldest_due_ms: int | None
    store_bytes: int
    free_bytes: int
    refusing: str | None


class Pruned(Struct, frozen=True, kw_only=True):
    """How many rows went, and whether there is more to look at now."""

    rows: int
    more: bool


class Retention(Struct, frozen=True, kw_only=True):
    """How long history is kept, and how large the store may grow (bytes; 0: as it likes)."""

    log_ms: int
    dead_letter_ms: int
    store_bytes_max: int = 0


class Deliveries(Protocol):
    """Messages from acceptance to their end."""

    async def add(
        self,
        drafts: Sequence[Draft],
        *,
        births: Births,
        queue_count_max: int = COUNT_MAX,
        now_ms: int,
    ) -> list[Accepted]:
        """Accept all of the drafts, or none; durable when it returns.

        Drafts whose bodies are one object share one row of it: a fan-out keeps its
        body once.

        A draft whose dedup key is taken at `now_ms` is not accepted: it is
        answered with the id of the first, also where that one came in the same
        call or at the same moment.  Cancelling does not free a key (D2).

        A flow-control key that is named is created if it is missing, and has the limits
        of the latest message that names it, but for those that are pinned (W209).

        A queue that is named is created if it is missing, with parallelism 1
        (W75).  The place in a queue is fixed here: (the later of acceptance and
        not-before, sequence); acceptance never goes back within a queue (D23).

        A message that is due, whose lane has room and nothing older waiting,
        may be born claimed, its place taken from `births`: the claim is handed
        over once it is durable, also when the caller has gone.  At
        most half of the free places go that way while any other lane is ready.

        Raises StoreFull when free space is below the watermark, and LimitReached where
        the tenant would come to have more queues than `queue_count_max`.
        """
        ...

    async def claim(self, *, count_max: int, places: Places, now_ms: int) -> Claimed:
        """Hand out up to `count_max` due messages, as `places` has room for them.

        In order within a lane; fairly between tenants, and then between
        their lanes.  No message is handed out twice while its claim lasts.  A
        message in retry keeps its place in its queue, and goes before those
        that wait for a place.  Places are taken from `places`.

        Of a flow-control key's messages no more are under way at once than its
        parallelism, and no more are logged ACTIVE in a window than its rate; none
        while it is paused (D26).  Those that have only the key go in order; where
        others wait for it in queues, they take turns.

        The cost does not grow with what is not due or may not go: a paused or
        full queue, a host without places, a delayed message are not visited.

        Raises StoreUnavailable on a node whose lease is over.
        """
        ...

    def may_begin(self, claim: Claim) -> bool:
        """Whether the attempt of a claim may begin now.

        Not once the lease that it was made under is over, also where there is a new one: others
        may have taken it over meanwhile.  Such a claim is released.  Asked at the last
        moment before the first byte goes out.
        """
        ...

    async def settle(
        self,
        claim: Claim,
        verdict: Verdict,
        outcome: Outcome,
        *,
        callbacks: Sequence[Draft] = (),
        births: Births,
        now_ms: int,
    ) -> Logged:
        """Record how an attempt ended, with all that follows, in one transaction.

        The log entries, the next due time or the end of the delivery, the dead
        letter, the freed hold, and the `callbacks`, which are accepted as by `add`.
        Answers the log's last word.  A claim that was asked to cancel ends as
        DELIVERED after a success and as CANCELED else; then there is no failure
        callback (D16).  A report of a failure is given the id of the dead letter.  A
        TryAgain that does not count uses up no retry.

        The hold of a queue is freed by whatever ends last: the message, or one of
        its callbacks that names no queue of its own (D24).

        Raises StaleClaim when the claim was lost, and then changes nothing.
        """
        ...

    async def release(self, claims: Sequence[Claim], *, now_ms: int) -> None:
        """Give claims back undelivered; it is not counted as an interruption (D18).

        Claims that were lost are passed over.  A release of none returns when what was asked
        before has handed its births over.
        """
        ...

    async def cancel(self, tenant: str, message_id: str, *, now_ms: int) -> Cancelled:
        """Cancel a message: at once where it waits, as soon as its attempt ends where
        one is in flight, which logs CANCEL_REQUESTED now (D16)."""
        ...

    async def cancel_many(self, tenant: str, message_ids: Sequence[str], *, now_ms: int) -> int:
        """Cancel messages as `cancel` does, in one transaction: how many could be.

        Passed over are those that nobody knows or that have ended, and those that were
        asked to cancel before.  Callers keep a call short.
        """
        ...


class Reader(Protocol):
    """What there is to see.  Nothing here changes anything."""

    async def message(self, tenant: str, message_id: str) -> tuple[Message, bytes] | None:
        """The message and its body, for as long as its row is kept (D17)."""
        ...

    async def log(
        self,
        tenant: str,
        *,
        where: LogFilter,
        view: LogView = LATEST_FIRST,
        cursor: str | None,
        count_max: int,
        bytes_max: int,
    ) -> LogPage:
        """A page of the log that ends at `count_max` or at `bytes_max` (D35).

        Complete and stable from page to page, whatever is logged meanwhile.  Where
        little of the log is asked for, a page may end early, even empty, with a cursor.

        By message, a message comes on one page, with all of its entries that are asked for,
        one after the other.  Where those of the first alone are more than `bytes_max`, those
        beyond it come without bodies.

        Raises Invalid for a cursor that is not one of ours.
        """
        ...

    async def cancellable(self, tenant: str, *, where: Filter, cursor: str | None) -> Found:
        """Some of the messages that `where` means and that a cancel would reach, in the order
        of their acceptance.

        A call looks at a bounded number of what is alive, and may find none of it.  Called
        again with the cursor until that is None, it has named each that was there at the
        first call and is still, once, and none that came later.
        """
        ...

    async def dead_letters(
        self,
        tenant: str,
        *,
        where: Filter = EVERYTHING,
        latest_first: bool = False,
        cursor: str | None,
        count_max: int,
        bytes_max: int = BYTES_MAX,
        bodies: bool = True,
    ) -> DeadLetterPage:
        """A page of the dead letters that `where` means, in the order of their failures, that
        ends at `count_max` or at `bytes_max`, for which the first has room in any case.
        Without `bodies` they come with empty ones, which take no room.

        Complete and stable from page to page, whatever comes and goes meanwhile.  Where
        `where` means few of many, a page may end early, even empty, with a cursor.
        Raises Invalid for a cursor that is not one of ours.
        """
        ...

    async def dead_letter_ids(
        self,
        tenant: str,
        *,
        where: Filter,
        latest_first: bool = False,
        cursor: str | None,
        count_max: int,
    ) -> Found:
        """As `dead_letters`, but for their ids, each of which is a cursor too."""
        ...

    async def dead_letter(self, tenant: str, dead_letter_id: str) -> DeadLetter | None: ...

    async def queue(self, tenant: str, name: str) -> Queue | None: ...

    async def queues(self, tenant: str) -> list[Queue]:
        """All of the tenant's queues, in the order of their names."""
        ...

    async def url_group(self, tenant: str, name_or_id: str) -> UrlGroup | None:
        """The URL group of that name, or of that id (D8)."""
        ...

    async def url_groups(self, tenant: str) -> list[UrlGroup]:
        """All of the tenant's URL groups, in the order of their names."""
        ...

    async def schedule(self, tenant: str, schedule_id: str) -> ScheduleSeen | None:
        """The schedule of that id.  One that cannot be read is logged, and is as one that is
        not there; here, in `schedules` and for `change_schedule`, which may overwrite it."""
        ...

    async def schedules(self, tenant: str, *, bytes_max: int) -> list[ScheduleSeen]:
        """All of the tenant's schedules, in the order of their ids.

        A body for which `bytes_max` leaves no room is left out: it is seen by itself.
        """
        ...

    async def due_schedules(self, *, now_ms: int, count_max: int, bytes_max: int) -> DueSchedules:
        """Schedules of any tenant whose `next_ms` has come, the longest due first.

        As many as `bytes_max` leaves room for, and at least one where one is due.  Not
        those of tenants who were revoked.  The cost does not grow with those that are
        not due.
        """
        ...

    async def flow_key(self, tenant: str, name: str, *, now_ms: int) -> FlowKeyState | None: ...

    async def flow_keys(self, tenant: str, *, search: str = "", now_ms: int) -> list[FlowKeyState]:
        """All of the tenant's flow-control keys in whose names `search` is, by name."""
        ...

    async def tenants(self) -> list[Tenant]: ...

    async def tokens(self) -> list[Token]: ...

    async def changed(self) -> bool:
        """Whether another process has written since this was last asked: the command
        line may have changed tenants or tokens (D32)."""
        ...

    async def pulse(self, *, now_ms: int) -> Pulse:
        """How the store is.  Raises StoreUnavailable when it is away."""
        ...


ChangeOfGroup = Callable[[UrlGroup | None], UrlGroup | None]
"""What is to become of a URL group; None where there is none, and where there is to be none."""


class UrlGroups(Protocol):
    """URL groups.  What changes them is the domain's; that no change is lost is the store's."""

    async def change_url_group(
        self,
        tenant: str,
        name_or_id: str,
        change: ChangeOfGroup,
        *,
        count_max: int = COUNT_MAX,
    ) -> UrlGroup | None:
        """Put in the place of a group what `change` makes of it; durable when it returns.

        `change` is given the group of that name or id as it is now, and nothing
        changes it in between: changes that are asked for at the same moment are
        made one after the other, each seeing what the one before has made.  It
        may be called more than once for one change, and only its last answer
        counts.  It keeps the id and the name of a group that is there.

        Answers what is kept now.  What `change` raises reaches this caller alone,
        and nothing is changed.  Messages that were published to the group stay
        as they are.

        Raises LimitReached where it would be a new one over `count_max`, and StoreFull when
        free space is below the watermark and the group would take more; then nothing is
        changed.
        """
        ...


NewMessage = Callable[[Message], Draft]
"""The message that is published for a dead one, without a body of its own."""


class DeadLetters(Protocol):
    """What can be done with dead letters.  Callers keep a call short."""

    async def delete_dead_letters(self, tenant: str, ids: Sequence[str]) -> int:
        """Remove dead letters: how many of them there were."""
        ...

    async def retry_dead_letters(
        self,
        tenant: str,
        ids: Sequence[str],
        new_message: NewMessage,
        *,
        queue_count_max: int = COUNT_MAX,
        now_ms: int,
    ) -> list[str | None]:
        """Publish a new message for each dead letter, which goes in the same transaction: so
        that it is published once, however often it is asked for (D27).

        The new message has the body of the dead one, a callback the report; it is
        accepted as by `add` and takes no dedup key.  `new_message` must not raise.
        Answers the new ids in the order of `ids`; None where there is no such dead letter.

        Raises StoreFull when free space is below the watermark, and LimitReached where the
        tenant would come to have more queues than `queue_count_max`; then nothing is changed.
        """
        ...


class Queues(Protocol):
    """Queues as their owners set them.  Who waits in them is told in `Deliveries`."""

    async def put_queue(
        self,
        tenant: str,
        name: str,
        *,
        parallelism: int,
        paused: bool | None,
        count_max: int = COUNT_MAX,
        now_ms: int,
    ) -> None:
        """Make a queue, or change the one that is there; durable when it returns.

        A `paused` of None leaves it as it is.  A change holds at once for what
        waits; what is in flight goes on: where more is in flight than `parallelism`
        allows now, nothing begins until enough of it has ended.

        Raises LimitReached where it would be a new one over `count_max`; then nothing is
        changed.
        """
        ...

    async def pause_queue(self, tenant: str, name: str, *, paused: bool, now_ms: int) -> bool:
        """Pause a queue, or let it go on; whether there is such a queue.

        While it is paused no attempt begins, the next one of a message in retry neither,
        and it takes messages as before.
        """
        ...

    async def empty_queue(
        self, tenant: str, name: str, *, mark: int | None, count_max: int, now_ms: int
    ) -> Emptied:
        """Cancel up to `count_max` of the messages of a queue, and end the queue with the
        last of them (D28).

        Called with a `mark` of None, and then with the mark that was answered, until
        that is None.  What waits is CANCELED; what is in flight is asked to cancel, as
        by `cancel`, and keeps its place until its attempt ends, also in a new queue
        of that name.  What is enqueued after the first call is not cancelled, and is then
        in a new queue.  An end that stops half-way leaves the queue with what is left in it.
        """
        ...


ChangeOfFlowKey = Callable[[FlowKey | None], FlowKey | None]
"""What is to become of a flow-control key; None as in `ChangeOfGroup`."""


class FlowKeys(Protocol):
    """Flow-control keys.  A message that names one makes it, or changes its limits, when it
    is accepted (`Deliveries.add`)."""

    async def change_flow_key(
        self, tenant: str, name: str, change: ChangeOfFlowKey, *, now_ms: int
    ) -> FlowKey | None:
        """Put in the place of a key what `change` makes of it, as `change_url_group` does for
        groups; durable when it returns.

        Whatever waits for the key goes at once as far as it may now.  A key that is
        ended while messages wait for it holds them no longer.
        """
        ...


ChangeOfSchedule = Callable[[Schedule | None], Schedule | None]
"""What is to become of a schedule; None as in `ChangeOfGroup`."""


class Schedules(Protocol):
    """Schedules, and their firings."""

    async def change_schedule(
        self,
        tenant: str,
        schedule_id: str,
        change: ChangeOfSchedule,
        *,
        body: bytes | None = None,
        count_max: int = COUNT_MAX,
    ) -> Schedule | None:
        """Put in the place of a schedule what `change` makes of it, as `change_url_group`
        does; durable when it returns.

        `body` takes the place of its body; None leaves that as it is.  Messages that
        it has made stay as they are.

        Raises LimitReached where the tenant would come to have more than `count_max`,
        StoreFull when free space is below the watermark and the schedule is new or
        has a new body, and Unauthenticated where the tenant was revoked, however long ago
        the caller was let in; then nothing is changed.
        """
        ...

    async def fire(
        self,
        before: Schedule,
        after: Schedule,
        drafts: Sequence[Draft],
        *,
        births: Births,
        queue_count_max: int = COUNT_MAX,
        now_ms: int,
    ) -> bool:
        """Fire a schedule: accept the messages of the run as `add` does, and put `after` in
        the place of `before`, in one transaction; durable when it returns.

        Whether it was fired: not where the schedule is no longer as `before` says, for
        it was changed, deleted or fired meanwhile, or its tenant was revoked.  Then
        nothing is changed.  So a fire time runs once, however often it is asked for,
        and whatever ends the process in between.

        Raises StoreFull when free space is below the watermark and there are drafts, and
        LimitReached as `add` does; then nothing is changed.
        """
        ...

    async def put_off_schedule(
        self, tenant: str, schedule_id: str, *, until_ms: int, now_ms: int
    ) -> None:
        """Have a schedule that is due not be so until `until_ms`, or until it is changed.

        Nothing else of it changes, be it readable or not: its `next_ms` stays the fire time
        that is still to run.  One that is not due at `now_ms` stays as it is, for it was
        changed meanwhile.
        """
        ...


class People(Protocol):
    """Tenants and tokens; the command line writes them, also while a server runs (D32)."""

    async def add_tenant(self, tenant: Tenant) -> None:
        """Raises Invalid where the id is taken."""
        ...

    async def revoke_tenant(self, tenant_id: str) -> bool:
        """End a tenant: its tokens are gone at once, its schedules fire no more, its messages
        are kept until they end."""
        ...

    async def add_token(self, token: Token) -> None:
        """Raises NotFound where there is no such tenant."""
        ...

    async def revoke_token(self, token_id: str) -> bool: ...

    async def tenants(self) -> list[Tenant]: ...

    async def tokens(self) -> list[Token]: ...


class Keys(Protocol):
    """Signing keys, as the server itself changes them."""

    async def rotate_keys(self, tenant_id: str, *, new_key: str) -> SigningKeys | None:
        """Put the next key in the place of the current one, and the new one in its place; durable
        when it returns.

        Answers the keys as they are now; None where there is no such tenant.
        """
        ...


class Upkeep(Protocol):
    """What keeps a store small and well.  Each call is short."""

    async def prune(self, *, retention: Retention, now_ms: int) -> Pruned:
        """Remove a small chunk of history that retention no longer covers.

        Nothing alive is removed: a message goes only when its log time is over,
        and it has neither a delivery nor a dead letter.  A flow-control key goes once
        nothing has used it for the time of the log, unless messages wait for it, it is
        paused or pinned, or its window is not over.
        """
        ...


class Node(Struct, frozen=True, kw_only=True):
    """One of the servers that share a store, as others see it: how long its lease goes on, and
    how many attempts it has under way."""

    id: int
    name: str
    began_ms: int
    lease_ms: int
    in_flight: int


class Hooks(Protocol):
    """Who is told of a store's work: how many calls shared a transaction, how long its commit
    took (s), and when a lane has its turn that may wait for one."""

    on_batch: Callable[[int], None]
    on_sync: Callable[[float], None]
    on_waiting: Callable[[int], None]


class Store(
    Deliveries,
    Reader,
    DeadLetters,
    UrlGroups,
    Queues,
    Keys,
    FlowKeys,
    Schedules,
    Upkeep,
    Protocol,
):
    """What a server asks of an engine, which is open."""

    @property
    def writer(self) -> Hooks: ...

    def vital(self) -> str | None:
        """What is wrong with this node's part in the store, or None."""
        ...

    async def close(self) -> None:
        """Finish what was asked, and let go of the database."""
        ...
