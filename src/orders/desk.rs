//! The desk of one keyring: it runs one rollout at a time, and decides about orders meanwhile.

use std::{cell::Cell, collections::VecDeque, pin::pin, time::Duration};

use serde_json::{Map, Value};
use tokio::{
    sync::mpsc::Receiver,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    WAITING,
    gate::{Gate, Verdict, is_emergency},
    opened::{Keyring, Ready, audit_file},
    teller::Teller,
};
use crate::{
    audit::{Act, ActOutcome},
    clock::{self, Clock},
    config,
    fleet::HubRollouts,
    keyring::Base64,
    model::KeyringName,
    rollout::{Finding, Phase, SignedStart, StartRefusal, StartRules, State},
    runner::RunError,
    wire::orders::OrderOutcome,
};

/// How often the journal is read for requests while no rollout runs.
const LOOK: Duration = Duration::from_secs(2);
/// The longest time between two tries after a failure.
const LONGEST: Duration = Duration::from_secs(30);
/// How long a desk that stops waits until the hub knows what it has decided.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// What one keyring's orders go through.
pub(super) struct Desk {
    keyring: Keyring,
    hub: HubRollouts,
    orders: Receiver<SignedStart>,
}

/// A desk whose manifest was read.
struct Open {
    name: KeyringName,
    rules: StartRules,
    ready: Ready,
    teller: Teller,
    audit: Option<config::Audit>,
    clock: Clock,
}

/// What happened at a desk.
enum Work {
    /// There is nothing to do until someone asks.
    Idle,
    /// Something was done, and there may be more.
    Done,
    /// It can't go on now.
    Failed(String),
}

impl Desk {
    pub(super) fn new(keyring: Keyring, hub: HubRollouts, orders: Receiver<SignedStart>) -> Self {
        Self {
            keyring,
            hub,
            orders,
        }
    }

    /// Decides about orders and runs rollouts until `stop` is cancelled.
    pub(super) async fn run(self, stop: CancellationToken) {
        let (teller, telling) = Teller::new(&self.keyring.name, &self.hub);
        let mut telling = pin!(telling);
        tokio::select! {
            () = Box::pin(work(self.keyring, self.orders, teller, stop)) => {}
            // It lasts as long as the work.
            () = &mut telling => return,
        }
        // Orders whose decision the hub doesn't know come again.
        let _ = timeout(LAST_WORDS, telling).await;
    }
}

async fn work(
    keyring: Keyring,
    mut orders: Receiver<SignedStart>,
    teller: Teller,
    stop: CancellationToken,
) {
    let mut failures = Failures::new(&keyring.name);
    let id = loop {
        let Some(trusted) = stop.run_until_cancelled(Box::pin(keyring.trust())).await else {
            return;
        };
        match trusted {
            Ok(id) => break id,
            Err(reason) => failures.wait(reason, &stop).await,
        }
    };
    tracing::info!(keyring = %keyring.name, %id, "reads the keyring");
    let (name, rules) = (keyring.name.clone(), keyring.rules.clone());
    let (audit, clock) = (keyring.audit.clone(), keyring.clock.clone());
    let ready = keyring.ready(id);
    let gate = Gate::new(
        (name.clone(), ready.id),
        rules.clone(),
        ready.taken.clone(),
        ready.kept.clone(),
    );
    let mut open = Open {
        name,
        rules,
        ready,
        teller,
        audit,
        clock,
    };
    let mut waiting = VecDeque::new();
    while !stop.is_cancelled() {
        match open.serve(&mut waiting, &mut orders, &gate, &stop).await {
            Work::Failed(reason) => failures.wait(reason, &stop).await,
            Work::Done => failures.over(),
            Work::Idle => {
                failures.over();
                let next = timeout(LOOK, orders.recv());
                if let Some(Ok(Some(start))) = stop.run_until_cancelled(next).await {
                    waiting.push_back(start);
                }
            }
        }
    }
}

impl Open {
    /// Begins the rollout of the next order or, if none waits, goes on with the present one. An
    /// emergency that arrives meanwhile ends that work; other orders are refused.
    async fn serve(
        &mut self,
        waiting: &mut VecDeque<SignedStart>,
        orders: &mut Receiver<SignedStart>,
        gate: &Gate,
        stop: &CancellationToken,
    ) -> Work {
        let own_stop = stop.child_token();
        self.ready.runner.stop_at(own_stop.clone());
        let (teller, clock) = (self.teller.clone(), self.clock.clone());
        let running = Cell::new(false);
        let next = waiting.pop_front();
        let mut work = Box::pin(async {
            match next {
                Some(start) => self.begin(&start, gate, &running).await,
                None => self.attend(&running).await,
            }
        });
        loop {
            let start = tokio::select! {
                done = &mut work => return done,
                Some(start) = orders.recv() => start,
            };
            if is_emergency(&start) {
                match gate.judge(&start, clock.now()) {
                    Verdict::Preempts => {
                        own_stop.cancel();
                        waiting.push_front(start);
                    }
                    Verdict::Begun => teller.tell(&start, OrderOutcome::Taken),
                    Verdict::Refused(reason) => teller.refuse(&start, reason),
                }
            } else if running.get() {
                let reason = "a rollout of the keyring has not ended; see `rollout status`";
                teller.refuse(&start, reason.into());
            } else if waiting.len() < WAITING {
                waiting.push_back(start);
            }
            // The others come again.
        }
    }

    async fn attend(&mut self, running: &Cell<bool>) -> Work {
        let name = self.name.clone();
        let mut watch = watch(&name, running);
        match Box::pin(self.ready.runner.attend(&mut watch)).await {
            Ok(None) => Work::Idle,
            Ok(Some(state)) => {
                log_end(&name, &state);
                Work::Done
            }
            Err(RunError::Stopped) => Work::Idle,
            Err(error) => Work::Failed(error.to_string()),
        }
    }

    async fn begin(&mut self, start: &SignedStart, gate: &Gate, running: &Cell<bool>) -> Work {
        if let Err(reason) = Box::pin(self.try_begin(start, running)).await {
            gate.refuse(start.order.id);
            self.teller.refuse(start, reason);
        }
        Work::Done
    }

    /// Checks an order, and runs its rollout.
    async fn try_begin(&mut self, start: &SignedStart, running: &Cell<bool>) -> Result<(), String> {
        let order = &start.order;
        // First: strangers cost no request.
        start
            .check_requester(&self.rules.requesters)
            .map_err(|refusal| refusal.to_string())?;
        let runner = &mut self.ready.runner;
        let last = runner.last().map_err(|error| error.to_string())?;
        if last.as_ref().is_some_and(|last| last.id == order.id) {
            // It was begun, and the hub doesn't know.
            self.teller.tell(start, OrderOutcome::Taken);
            return Ok(());
        }
        let admin = runner.admin();
        let document = Box::pin(admin.read_trusted()).await;
        let document = document.map_err(|error| error.to_string())?;
        let now = admin.now();
        start
            .check(&self.rules, document.manifest(), now)
            .map_err(|refusal| refusal.to_string())?;
        let unfinished = last.filter(|last| !last.phase.is_over() && !is_emergency(start));
        if let Some(last) = unfinished {
            return Err(RunError::Unfinished(last.id).to_string());
        }
        if !self.ready.taken.take(order, now)? {
            return Err(StartRefusal::Taken.to_string());
        }
        self.plan_and_run(start, running).await
    }

    async fn plan_and_run(
        &mut self,
        start: &SignedStart,
        running: &Cell<bool>,
    ) -> Result<(), String> {
        let order = &start.order;
        let runner = &mut self.ready.runner;
        let (strategy, intent) = (order.strategy.clone(), order.intent.clone());
        let planned = Box::pin(runner.plan(strategy, intent, order.requester.clone())).await;
        let (assessment, mut plan) = planned.map_err(|error| error.to_string())?;
        plan.order = Some(Base64(order.digest().to_vec()));
        let blockers: Vec<&Finding> = assessment.blockers().collect();
        if !blockers.is_empty() {
            return Err(said(&blockers));
        }
        let act = audit_file(self.audit.as_ref())?.map(|file| {
            let details = details(start);
            Act::begin(file, "rollout.run", details, self.clock.clone())
        });
        let act = act.transpose().map_err(|error| error.to_string())?;
        tracing::info!(
            keyring = %self.name, rollout = %order.id, requester = order.requester.name,
            strategy = order.strategy.name, "took an order"
        );
        self.teller.tell(start, OrderOutcome::Taken);
        let mut watch = watch(&self.name, running);
        let result = Box::pin(runner.run(plan, assessment, order.id, &mut watch)).await;
        let (outcome, ended) = match &result {
            Ok(state) => (outcome(state), state.phase.to_string()),
            Err(error) => (ActOutcome::Failed, error.to_string()),
        };
        if let Some(act) = act {
            let details = Map::from_iter([("ended".to_owned(), ended.into())]);
            if let Err(error) = act.end(outcome, details) {
                tracing::error!(keyring = %self.name, %error, "can't record the end of a rollout");
            }
        }
        match result {
            Ok(state) => {
                log_end(&self.name, &state);
                Ok(())
            }
            // It goes on later.
            Err(_) if running.get() => Ok(()),
            Err(error) => Err(error.to_string()),
        }
    }
}

/// Failures of a desk: each reason is logged once, and the tries become rarer.
struct Failures {
    name: KeyringName,
    count: u32,
    last: Option<String>,
}

impl Failures {
    fn new(name: &KeyringName) -> Self {
        Self {
            name: name.clone(),
            count: 0,
            last: None,
        }
    }

    async fn wait(&mut self, reason: String, stop: &CancellationToken) {
        if self.last.as_ref() != Some(&reason) {
            tracing::error!(keyring = %self.name, reason, "can't go on; trying again");
        }
        self.last = Some(reason);
        self.count = self.count.saturating_add(1);
        let pause = clock::backoff(Duration::from_secs(1), self.count, LONGEST);
        stop.run_until_cancelled(sleep(pause)).await;
    }

    fn over(&mut self) {
        (self.count, self.last) = (0, None);
    }
}

/// Logs what is new in a state.
fn watch<'w>(name: &'w KeyringName, running: &'w Cell<bool>) -> impl FnMut(&State) + 'w {
    let mut shown = None;
    move |state| {
        running.set(true);
        let entries = &state.entries;
        let first = *shown.get_or_insert(entries.len().saturating_sub(1));
        for entry in &entries[first.min(entries.len())..] {
            tracing::info!(
                keyring = %name, rollout = %state.id, step = entry.step, text = entry.text,
                "{}", entry.kind
            );
        }
        shown = Some(entries.len());
    }
}

fn log_end(name: &KeyringName, state: &State) {
    tracing::info!(keyring = %name, rollout = %state.id, "the rollout {}", state.phase);
}

fn outcome(state: &State) -> ActOutcome {
    match state.phase {
        Phase::Finished => ActOutcome::Done,
        _ => ActOutcome::Failed,
    }
}

fn details(start: &SignedStart) -> Map<String, Value> {
    let order = &start.order;
    let key = order.requester.key.map(|key| key.to_string());
    Map::from_iter([
        ("keyring".to_owned(), order.keyring.to_string().into()),
        ("rollout".to_owned(), order.id.to_string().into()),
        ("requester".to_owned(), order.requester.name.clone().into()),
        ("requester_key".to_owned(), key.into()),
        ("strategy".to_owned(), order.strategy.name.clone().into()),
    ])
}

fn said(blockers: &[&Finding]) -> String {
    let lines = blockers
        .iter()
        .map(|finding| format!("{} ({})", finding.message, finding.code));
    format!(
        "the rollout can't start: {}",
        lines.collect::<Vec<_>>().join("; ")
    )
}
