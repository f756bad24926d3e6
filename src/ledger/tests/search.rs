//! Searches everything that may happen to a few processes, their reports, a hub and its database,
//! through the ledger's own functions: no verdict is quiet although the version was used within the
//! quiet period. Breaks each rule in turn, and shows that the search notices.

use std::{
    collections::{HashSet, VecDeque},
    hash::{DefaultHasher, Hash, Hasher},
};

use super::{super::*, *};

/// In hours, as all times here.
const QUIET: u64 = 2;
/// Where a search ends: the states of one process are fewer, and of two, the shortest ways are
/// searched.
const MOST_STATES: usize = 20_000;

/// What may happen beside starts, uses, reports that are lost, late or repeated, and ends.
#[derive(Clone, Copy, Default)]
struct Events {
    crash: bool,
    down: bool,
    restore: bool,
    forgery: bool,
}

/// How the rules are broken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Mutation {
    Deltas,
    NoGap,
    NoRoster,
    NoBarrier,
    ReceiptIsAnswer,
    SidecarsClock,
    EndIsFinal,
    AnyOwner,
    ResendIsNew,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Life {
    Unborn,
    Running,
    Ended,
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct Process {
    life: Life,
    uses: u64,
    reported: u64,
    sequence: u64,
    /// The last report. It may be delivered at any time, any number of times.
    sent: Option<Sent>,
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct Sent {
    uses: u64,
    answers: Option<u64>,
    is_final: bool,
    at: i64,
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct World {
    now: i64,
    processes: Vec<Process>,
    is_up: bool,
    ledger: Ledger,
    backup: Option<Ledger>,
    barrier: Option<i64>,
    last_use: Option<i64>,
}

struct Search {
    events: Events,
    mutation: Option<Mutation>,
    processes: usize,
    /// How many reports a process samples before its final one.
    reports: u64,
    end: i64,
}

/// What was found: how a false verdict comes about, or how many states have none.
type Outcome = Result<usize, String>;

impl Search {
    fn new(events: Events, processes: usize, reports: u64, end: i64) -> Self {
        Self {
            events,
            mutation: None,
            processes,
            reports,
            end,
        }
    }

    fn is(&self, mutation: Mutation) -> bool {
        self.mutation == Some(mutation)
    }

    fn run(&self) -> Outcome {
        let mut seen: HashSet<u64> = HashSet::new();
        let mut worlds = VecDeque::from([(start(self.processes), String::new())]);
        while let Some((world, path)) = worlds.pop_front() {
            if seen.len() >= MOST_STATES {
                break;
            }
            if self.is_falsely_quiet(&world) {
                return Err(path);
            }
            if self.mutation.is_none() && seen.len().is_multiple_of(32) {
                assert!(self.recovers(world.clone()), "blocked without end: {path}");
            }
            self.steps(&world, &mut |label, next| {
                let mut hasher = DefaultHasher::new();
                next.hash(&mut hasher);
                if seen.insert(hasher.finish()) {
                    worlds.push_back((next, format!("{path} {label}")));
                }
            });
        }
        Ok(seen.len())
    }

    fn steps(&self, world: &World, go: &mut impl FnMut(String, World)) {
        if world.now < self.end {
            let mut next = world.clone();
            next.now += 1;
            if next.is_up {
                // Books that were closed an hour ago or before.
                next.ledger.fold(hour(next.now + 23));
            }
            go(format!("hour{}", next.now), next);
        }
        if world.is_up && world.barrier != Some(world.now) {
            let mut next = world.clone();
            next.barrier = Some(world.now);
            go("barrier".into(), next);
        }
        self.hub_steps(world, go);
        for index in 0..self.processes {
            self.process_steps(world, index, go);
        }
    }

    fn hub_steps(&self, world: &World, go: &mut impl FnMut(String, World)) {
        if self.events.down {
            let mut next = world.clone();
            if world.is_up {
                next.is_up = false;
            } else {
                self.start_hub(&mut next);
            }
            go(if world.is_up { "down" } else { "up" }.into(), next);
        }
        if self.events.restore && world.is_up && world.backup.is_none() {
            let mut next = world.clone();
            next.backup = Some(world.ledger.clone());
            go("backup".into(), next);
        }
        if self.events.restore
            && let Some(backup) = &world.backup
        {
            let mut next = world.clone();
            next.ledger = backup.clone();
            self.start_hub(&mut next);
            go("restore".into(), next);
        }
    }

    fn start_hub(&self, world: &mut World) {
        world.is_up = true;
        if !self.is(Mutation::NoGap) {
            world.ledger.gaps = vec![Gap {
                until: hour(world.now),
                from: None,
                keyring: None,
                workload: None,
                cause: Cause::HubDown,
            }];
        }
        for index in 0..self.processes {
            self.list(world, index);
        }
    }

    /// A roster that is read at once.
    fn list(&self, world: &mut World, index: usize) {
        let is_listed = world.is_up && world.processes[index].life == Life::Running;
        if is_listed && !self.is(Mutation::NoRoster) {
            let now = hour(world.now);
            world.ledger.list(&member(index), WORKLOAD, now);
            // When it was listed last matters after days only.
            let listing = world.ledger.listings.get_mut(&member(index));
            listing.expect("listed").seen_at = now;
        }
    }

    fn process_steps(&self, world: &World, index: usize, go: &mut impl FnMut(String, World)) {
        let process = &world.processes[index];
        let mut change = |label: &str, change: &dyn Fn(&mut World)| {
            let mut next = world.clone();
            change(&mut next);
            go(format!("{label}{index}"), next);
        };
        match process.life {
            Life::Unborn => {
                // The processes are alike: they start in order.
                if index == 0 || world.processes[index - 1].life != Life::Unborn {
                    change("start", &|next| {
                        next.processes[index].life = Life::Running;
                        self.list(next, index);
                    });
                }
            }
            Life::Running => {
                if process.uses == 0 {
                    change("use", &|next| {
                        next.processes[index].uses += 1;
                        next.last_use = Some(next.now);
                    });
                }
                if process.sequence < self.reports {
                    change("report", &|next| self.sample(next, index, false));
                }
                change("end", &|next| {
                    self.sample(next, index, true);
                    next.processes[index].life = Life::Ended;
                });
                if self.events.crash {
                    change("crash", &|next| next.processes[index].life = Life::Ended);
                }
            }
            Life::Ended => {
                let listing = world.ledger.listings.get(&member(index));
                if world.is_up && listing.is_some_and(|listing| listing.ended_at.is_none()) {
                    change("confirm", &|next| self.confirm_end(next, index));
                }
            }
        }
        if let Some(sent) = &process.sent
            && world.is_up
        {
            change("deliver", &|next| self.deliver(next, index, sent));
        }
        if self.events.forgery && world.is_up && process.life == Life::Running {
            change("forge", &|next| self.forge(next, index));
        }
    }

    fn sample(&self, world: &mut World, index: usize, is_final: bool) {
        let process = &mut world.processes[index];
        process.sequence += 1;
        let uses = if self.is(Mutation::Deltas) {
            process.uses - process.reported
        } else {
            process.uses
        };
        process.reported = process.uses;
        process.sent = Some(Sent {
            uses,
            answers: world.barrier.map(number_of),
            is_final,
            at: world.now,
        });
    }

    fn deliver(&self, world: &mut World, index: usize, sent: &Sent) {
        let process = &world.processes[index];
        let mut delivery = delivery(index, process.sequence, sent);
        if self.is(Mutation::ReceiptIsAnswer) {
            delivery.answers = world.barrier.map(number_of);
        }
        let mut now = hour(world.now);
        if self.is(Mutation::SidecarsClock) {
            now = hour(sent.at - 1);
        }
        let taken = world.ledger.take(&delivery, now);
        assert!(taken.is_ok(), "by its owner");
        if self.is(Mutation::ResendIsNew)
            && let Some(book) = world.ledger.books.get_mut(&key(index))
        {
            book.answered = world.barrier.map_or(0, number_of);
        }
    }

    fn confirm_end(&self, world: &mut World, index: usize) {
        let now = hour(world.now);
        world.ledger.confirm_end(&member(index), now);
        if self.is(Mutation::EndIsFinal)
            && let Some(book) = world.ledger.books.get_mut(&key(index))
        {
            book.gap = None;
        }
    }

    /// A stranger says that the process has ended.
    fn forge(&self, world: &mut World, index: usize) {
        let process = &world.processes[index];
        let sent = Sent {
            uses: 0,
            answers: None,
            is_final: true,
            at: world.now,
        };
        let mut delivery = delivery(index, process.sequence + 1, &sent);
        if !self.is(Mutation::AnyOwner) {
            delivery.owner = "a stranger".into();
        }
        let is_known = world.ledger.books.contains_key(&key(index));
        // An unknown process has no owner yet; its instance can't be guessed.
        if is_known {
            let taken = world.ledger.take(&delivery, hour(world.now));
            assert_eq!(taken.is_ok(), self.is(Mutation::AnyOwner));
        }
    }

    fn is_falsely_quiet(&self, world: &World) -> bool {
        let (Some(barrier), Some(last_use)) = (world.barrier, world.last_use) else {
            return false;
        };
        // A use in the hour of the barrier may be after it.
        let was_used = last_use < barrier && barrier - last_use < QUIET.cast_signed();
        was_used && world.is_up && self.judge(world, barrier).is_quiet()
    }

    fn judge(&self, world: &World, at: i64) -> Verdict {
        let mut question = question(hour(at));
        question.quiet_period = Span::from_secs(3600 * QUIET);
        question.superseded = Some(Superseded {
            at: day(-300),
            generation: GENERATION,
        });
        // Whether there is a process at all isn't searched.
        question.statements.push(Statement {
            by: "alice".into(),
            at: day(-1),
            version: OLD,
            subject: Subject::NotNeeded { workload: None },
            note: String::new(),
        });
        question.barrier.number = number_of(at);
        if self.is(Mutation::NoBarrier) {
            question.barrier.number = 0;
        }
        judge(&world.ledger, &question)
    }

    /// Returns whether the version is quiet, as time goes by and nothing more happens.
    fn recovers(&self, mut world: World) -> bool {
        if !world.is_up {
            self.start_hub(&mut world);
        }
        for index in 0..self.processes {
            if world.processes[index].life == Life::Ended {
                world.ledger.confirm_end(&member(index), hour(world.now));
            }
        }
        world.now += 100;
        world.ledger.close_lost(Span::from_days(2), hour(world.now));
        world.now += 100;
        world.barrier = Some(world.now);
        for index in 0..self.processes {
            if world.processes[index].life == Life::Running {
                self.sample(&mut world, index, false);
                let sent = world.processes[index].sent.clone().expect("sampled");
                self.deliver(&mut world, index, &sent);
            }
        }
        // Those that were given up and are back.
        world.now += 100;
        world.barrier = Some(world.now);
        for index in 0..self.processes {
            if world.processes[index].life == Life::Running {
                self.sample(&mut world, index, false);
                let sent = world.processes[index].sent.clone().expect("sampled");
                self.deliver(&mut world, index, &sent);
            }
        }
        self.judge(&world, world.now).is_quiet()
    }
}

fn start(processes: usize) -> World {
    let process = Process {
        life: Life::Unborn,
        uses: 0,
        reported: 0,
        sequence: 0,
        sent: None,
    };
    let mut ledger = Ledger::default();
    // The workload has been watched for long.
    take(&mut ledger, &last_report(99, 1, 0), day(-90));
    ledger.fold(day(-80));
    World {
        now: 0,
        processes: vec![process; processes],
        is_up: true,
        ledger,
        backup: None,
        barrier: None,
        last_use: None,
    }
}

fn delivery(index: usize, sequence: u64, sent: &Sent) -> Delivery {
    Delivery {
        answers: sent.answers,
        is_final: sent.is_final,
        member: Some(member(index)),
        ..report(number(index), sequence, sent.uses)
    }
}

fn number(index: usize) -> u8 {
    u8::try_from(index).expect("a few")
}

fn key(index: usize) -> (InstanceId, KeyringId) {
    (instance(number(index)), KEYRING)
}

fn member(index: usize) -> String {
    format!("pod-{index}")
}

fn number_of(barrier: i64) -> u64 {
    u64::try_from(barrier + 1).expect("not before the start")
}

const CRASH: Events = Events {
    crash: true,
    down: false,
    restore: false,
    forgery: false,
};
const DOWN: Events = Events {
    down: true,
    ..CRASH
};
const RESTORE: Events = Events {
    restore: true,
    ..CRASH
};
const FORGERY: Events = Events {
    forgery: true,
    ..CRASH
};

#[test]
fn no_verdict_is_falsely_quiet() {
    let cases = [
        (CRASH, 1, 1, 2),
        (DOWN, 1, 1, 1),
        (RESTORE, 1, 1, 1),
        (FORGERY, 1, 1, 1),
        (CRASH, 2, 1, 1),
    ];
    for (events, processes, reports, end) in cases {
        let outcome = Search::new(events, processes, reports, end).run();
        let states = outcome.expect("no false verdict");
        assert!(processes > 1 || states < MOST_STATES, "not exhausted");
        assert!(states > 500, "{states} states are no search");
    }
}

#[test]
fn a_broken_rule_is_noticed() {
    let broken = [
        (Mutation::Deltas, CRASH),
        (Mutation::NoGap, DOWN),
        (Mutation::NoGap, RESTORE),
        (Mutation::NoRoster, CRASH),
        (Mutation::NoBarrier, CRASH),
        (Mutation::ReceiptIsAnswer, CRASH),
        (Mutation::SidecarsClock, CRASH),
        (Mutation::EndIsFinal, CRASH),
        (Mutation::AnyOwner, FORGERY),
        (Mutation::ResendIsNew, CRASH),
    ];
    for (mutation, events) in broken {
        let reports = if mutation == Mutation::Deltas { 2 } else { 1 };
        let mut search = Search::new(events, 1, reports, 1);
        search.mutation = Some(mutation);
        let outcome = search.run();
        assert!(outcome.is_err(), "{mutation:?} isn't noticed");
    }
}
