//! Supervises the program like an init process: forwards signals, reaps orphans, and returns the
//! program's exit code.

use std::{
    collections::BTreeSet, future::pending, io, ops::ControlFlow, path::Path, sync::Arc,
    time::Duration,
};

use rustix::process::{Pid, Signal, getpid, kill_current_process_group, set_child_subreaper};
use tokio::{
    sync::watch,
    time::{Instant, sleep, sleep_until, timeout_at},
};

use super::{
    bindings::SecretRef,
    error::ExecError,
    folder::Folder,
    log::log,
    plan::{OnChange, Plan},
    program::{ProcessStatus, Program},
    signals::{Received, SignalName, Signals},
    staging::Staging,
    terminal::{Suspended, Terminal},
    values::{FetchError, Values},
    watcher,
};
use crate::model::SecretName;

/// How long the first attempt to read the secrets may take, even if there is no time to wait.
const FIRST_ATTEMPT: Duration = Duration::from_secs(5);
/// The delay between attempts at startup, and the initial one between restarts.
const MIN_PAUSE: Duration = Duration::from_millis(100);
/// The maximum delay between attempts to restart the program.
const MAX_PAUSE: Duration = Duration::from_secs(5);

/// Runs the program and returns its exit code, or 128 + N if signal N killed it.
///
/// Must run on the process's main thread, in a single-threaded Tokio runtime: the kernel kills the
/// program when the thread that started it exits.
///
/// # Errors
/// The program could not be started or restarted.
pub async fn run(plan: Plan) -> Result<u8, ExecError> {
    // First, so that an early signal doesn't kill the process and leave files behind.
    let mut signals = Signals::listen()?;
    let terminal = Terminal::open()?;
    set_child_subreaper(Some(getpid())).map_err(io::Error::from)?;
    let folder = if plan.bindings.files.is_empty() {
        None
    } else {
        Some(Folder::create(plan.folder.as_deref(), plan.access)?)
    };
    let secrets = plan.bindings.secrets();
    let values = tokio::select! {
        values = first_values(&plan, &secrets) => Arc::new(values?),
        signal = stop_signal(&mut signals) => return Ok(exit_code(signal)),
    };
    let changes = watcher::spawn(&plan, secrets, Arc::clone(&values));
    let staging = Staging::new(&plan, folder, values)?;
    let mut supervisor = Supervisor {
        plan,
        terminal,
        staging,
        kill_at: None,
        stop_requested: false,
        last: None,
    };
    let program = supervisor.start()?;
    supervisor.supervise(program, &mut signals, changes).await
}

/// Reads the secrets, and waits until all are available.
async fn first_values(plan: &Plan, secrets: &BTreeSet<SecretRef>) -> Result<Values, ExecError> {
    let begun = Instant::now();
    let until = begun + plan.wait;
    // At least one attempt is made, even without any time to wait.
    let mut limit = until.max(begun + FIRST_ATTEMPT);
    let mut last: Option<FetchError> = None;
    let mut logged = BTreeSet::new();
    loop {
        match timeout_at(limit, Values::fetch(&plan.socket, secrets)).await {
            Ok(Ok(values)) => return Ok(values),
            Ok(Err(error)) if error.is_final() && !error.is_missing() => {
                return Err(ExecError::Fetch(error));
            }
            Ok(Err(error)) => {
                // Each reason once: the sidecar may be missing, then one secret, then another.
                if Instant::now() < until && logged.insert(error.to_string()) {
                    log(format_args!(
                        "{error}; waiting for up to {}",
                        humantime::format_duration(plan.wait)
                    ));
                }
                last = Some(error);
            }
            Err(_) => {}
        }
        limit = until;
        if Instant::now() >= until {
            return Err(ExecError::TimedOut {
                waited: plan.wait,
                error: last,
            });
        }
        sleep_until(until.min(Instant::now() + MIN_PAUSE)).await;
    }
}

/// Waits for a signal that requests to stop, while no program runs.
async fn stop_signal(signals: &mut Signals) -> Signal {
    loop {
        match signals.next().await {
            Received::Forward(SignalName(signal))
                if is_stop_request(signal) || signal == Signal::HUP =>
            {
                return signal;
            }
            Received::Forward(SignalName(Signal::TSTP)) => {
                let _ = kill_current_process_group(Signal::STOP);
            }
            Received::Forward(_) | Received::Child => {}
        }
    }
}

/// Whether `signal` requests that the program stop.
fn is_stop_request(signal: Signal) -> bool {
    [Signal::TERM, Signal::INT, Signal::QUIT].contains(&signal)
}

fn exit_code(signal: Signal) -> u8 {
    u8::try_from(128 + signal.as_raw()).unwrap_or(u8::MAX)
}

struct Supervisor {
    plan: Plan,
    terminal: Terminal,
    staging: Staging,
    /// When to kill the program if it doesn't exit; set while a restart is in progress.
    kill_at: Option<Instant>,
    /// Whether a signal requested to stop, so that the program isn't restarted any more.
    stop_requested: bool,
    /// The previous process of the program, which may still own the terminal.
    last: Option<Pid>,
}

impl Supervisor {
    fn start(&mut self) -> Result<Program, ExecError> {
        let foreground = self.terminal.is_owned(self.last);
        let program = Program::start(
            &self.plan,
            self.staging.current(),
            self.staging.folder(),
            foreground,
        )?;
        self.last = Some(program.pid());
        Ok(program)
    }

    /// Starts the program again with the staged values. Returns the exit code if a signal requests
    /// to stop while the process can't be created.
    async fn restart(
        &mut self,
        signals: &mut Signals,
    ) -> Result<ControlFlow<u8, Program>, ExecError> {
        self.kill_at = None;
        if let Err(error) = self.staging.commit() {
            log(format_args!(
                "{error}; starting the program with its previous values"
            ));
        }
        let until = Instant::now() + self.plan.wait;
        let mut pause = MIN_PAUSE;
        loop {
            match self.start() {
                Ok(program) => return Ok(ControlFlow::Continue(program)),
                Err(error) if Instant::now() >= until => return Err(error),
                Err(error) if pause == MIN_PAUSE => {
                    log(format_args!(
                        "{error}; retrying for up to {}",
                        humantime::format_duration(self.plan.wait)
                    ));
                }
                Err(_) => {}
            }
            tokio::select! {
                signal = stop_signal(signals) => {
                    if let Some(last) = self.last {
                        self.terminal.take_back(last);
                    }
                    return Ok(ControlFlow::Break(exit_code(signal)));
                }
                () = sleep(pause) => {}
            }
            pause = (pause * 2).min(MAX_PAUSE);
        }
    }

    async fn supervise(
        &mut self,
        mut program: Program,
        signals: &mut Signals,
        mut changes: watch::Receiver<Arc<Values>>,
    ) -> Result<u8, ExecError> {
        loop {
            let (kill_at, retry_at) = (self.kill_at, self.staging.retry_at());
            tokio::select! {
                received = signals.next() => match received {
                    Received::Forward(SignalName(signal)) => self.forward(signal, &program),
                    Received::Child => {
                        let reaped = self.reap(&mut program, signals, &mut changes);
                        if let ControlFlow::Break(exit) = reaped.await? {
                            return Ok(exit);
                        }
                    }
                },
                Ok(()) = changes.changed() => {
                    let values = Arc::clone(&changes.borrow_and_update());
                    self.change(values, &program, Attempt::First);
                }
                () = at(retry_at) => {
                    let values = Arc::clone(&changes.borrow_and_update());
                    self.change(values, &program, Attempt::Retry);
                }
                () = at(kill_at) => self.kill(&program),
            }
        }
    }

    /// Handles the end or stop of a process. Returns the exit code once the program has exited and
    /// is not restarted.
    async fn reap(
        &mut self,
        program: &mut Program,
        signals: &mut Signals,
        changes: &mut watch::Receiver<Arc<Values>>,
    ) -> Result<ControlFlow<u8>, ExecError> {
        let restarts = self.kill_at.is_some() && !self.stop_requested;
        if restarts && program.has_exited() {
            // Remaining children would hold ports and files, and keep outdated secrets.
            program.signal_group(Signal::KILL);
        }
        match program.reap() {
            Some(ProcessStatus::Exited { code }) if restarts && !was_interrupted(code) => {
                if let Ok(true) = changes.has_changed() {
                    let values = Arc::clone(&changes.borrow_and_update());
                    self.change(values, program, Attempt::First);
                }
                match self.restart(signals).await? {
                    ControlFlow::Continue(next) => *program = next,
                    ControlFlow::Break(exit) => return Ok(ControlFlow::Break(exit)),
                }
            }
            Some(ProcessStatus::Exited { code }) => {
                self.terminal.take_back(program.pid());
                return Ok(ControlFlow::Break(code));
            }
            Some(ProcessStatus::Stopped(signal)) => self.suspend(signal, program),
            None => {}
        }
        Ok(ControlFlow::Continue(()))
    }

    /// Kills a program that did not exit for a restart.
    fn kill(&mut self, program: &Program) {
        let grace = self.plan.grace;
        self.kill_at = self
            .kill_at
            .map(|at| at + grace.max(Duration::from_secs(1)));
        log(format_args!(
            "the program did not exit within {}; killing it",
            humantime::format_duration(grace)
        ));
        program.signal_group(Signal::KILL);
    }

    fn forward(&mut self, signal: Signal, program: &Program) {
        self.stop_requested |= is_stop_request(signal);
        if signal == Signal::CONT {
            // From a shell's `fg`, if this process owns the terminal.
            self.terminal.give(program.pid());
            program.signal_group(signal);
        } else {
            program.signal(signal);
        }
    }

    fn suspend(&self, signal: i32, program: &Program) {
        if [Signal::TTIN, Signal::TTOU]
            .map(Signal::as_raw)
            .contains(&signal)
            && self.terminal.lend(program.pid())
        {
            program.signal_group(Signal::CONT);
            return;
        }
        match self.terminal.suspend(program.pid()) {
            // The shell's SIGCONT is received here, too, and forwarded to the program.
            Suspended::Resumed | Suspended::NoTerminal => {}
            Suspended::SessionLeader if signal == Signal::STOP.as_raw() => {}
            Suspended::SessionLeader => {
                self.terminal.give(program.pid());
                program.signal_group(Signal::CONT);
            }
        }
    }

    fn change(&mut self, values: Arc<Values>, program: &Program, attempt: Attempt) {
        let changed = self.staging.changed(&values);
        if changed.is_empty() && (self.kill_at.is_none() || self.stop_requested) {
            self.staging.cancel_retry();
            return;
        }
        let changed = names(&changed);
        if self.stop_requested {
            self.staging.cancel_retry();
            log(format_args!(
                "{changed} changed; ignored, because the program is stopping"
            ));
            return;
        }
        // Staged first, so that the program is never stopped for values that it can't start with.
        match self.stage(values) {
            Ok(()) => self.apply(&changed, program),
            Err(error) if attempt == Attempt::First => {
                let retry = if self.staging.retry_at().is_some() {
                    "; retrying"
                } else {
                    ""
                };
                let consequence = if self.kill_at.is_some() {
                    "will start with the previous values"
                } else {
                    "keeps its current values"
                };
                log(format_args!(
                    "{changed} changed: {error}; the program {consequence}{retry}"
                ));
            }
            Err(_) => {}
        }
    }

    fn stage(&mut self, values: Arc<Values>) -> Result<(), ExecError> {
        match self.plan.on_change {
            OnChange::Restart => self.staging.stage_for_start(&self.plan, values),
            OnChange::Ignore | OnChange::Signal(_) => self
                .staging
                .stage(&self.plan, values)
                .and_then(|()| self.staging.commit())
                .map_err(ExecError::from),
        }
    }

    /// Tells the program of staged values, by the signal or restart that the plan specifies.
    fn apply(&mut self, changed: &str, program: &Program) {
        match self.plan.on_change {
            OnChange::Ignore => {}
            OnChange::Signal(signal) => {
                log(format_args!(
                    "{changed} changed; sending SIG{signal} to {}",
                    display(&self.plan.program)
                ));
                program.signal(signal.0);
            }
            // A restart is in progress, and uses the staged values.
            OnChange::Restart if self.kill_at.is_some() => {}
            OnChange::Restart => {
                log(format_args!(
                    "{changed} changed; restarting {}",
                    display(&self.plan.program)
                ));
                self.kill_at = Some(Instant::now() + self.plan.grace);
                program.signal(Signal::TERM);
                // Resumes a stopped program, which could not handle SIGTERM.
                program.signal(Signal::CONT);
            }
        }
    }
}

/// Whether a change is new or retried, because its files could not be written before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Attempt {
    First,
    Retry,
}

/// Whether the program died of ^C or ^\, which only it receives. The user then expects it to
/// stop, not to restart.
fn was_interrupted(code: u8) -> bool {
    [Signal::INT, Signal::QUIT].map(exit_code).contains(&code)
}

async fn at(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => pending().await,
    }
}

fn names(secrets: &BTreeSet<SecretName>) -> String {
    secrets
        .iter()
        .map(SecretName::as_str)
        .collect::<Vec<_>>()
        .join(", ")
}

fn display(program: &std::ffi::OsStr) -> std::path::Display<'_> {
    Path::new(program).display()
}
