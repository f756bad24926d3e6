//! Looks after the program from start to end, as an init does: passes signals on, reaps what is left, gives back the exit code.

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
    ExecError, OnChange, Plan,
    bindings::Piece,
    folder::Folder,
    follow::follow,
    given::Given,
    program::{Fate, Program},
    say,
    signals::{Heard, SignalName, Signals},
    terminal::{Suspended, Terminal},
    values::{FetchError, Values},
};
use crate::model::SecretName;

/// How often a sidecar that isn't there yet is looked for.
const PAUSE: Duration = Duration::from_millis(100);
/// How long a system that refuses a process is left alone at most.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// Runs the program; gives the exit code that its end makes, 128 + N if signal N ended it. Needs a Tokio runtime of one thread, the
/// process's first: the kernel ends the program when the thread that started it ends.
///
/// # Errors
/// The program was not started, or could not be started anew.
pub async fn run(plan: Plan) -> Result<u8, ExecError> {
    // First, so that no signal ends us the hard way, with files left behind.
    let mut signals = Signals::listen()?;
    let terminal = Terminal::open()?;
    set_child_subreaper(Some(getpid())).map_err(io::Error::from)?;
    let folder = if plan.bindings.files.is_empty() {
        None
    } else {
        Some(Folder::create(plan.folder.as_deref())?)
    };
    let pieces = plan.bindings.pieces();
    let values = tokio::select! {
        values = first_values(&plan, &pieces) => Arc::new(values?),
        signal = end_asked_for(&mut signals) => return Ok(exit_of(signal)),
    };
    let changes = follow(&plan, pieces, Arc::clone(&values));
    let given = Given::new(&plan, folder, values)?;
    let mut supervisor = Supervisor {
        plan,
        terminal,
        given,
        stopping: None,
        end_asked_for: false,
        last: None,
    };
    let program = supervisor.start()?;
    supervisor.look_after(program, &mut signals, changes).await
}

/// The secrets, as soon as all can be had.
async fn first_values(plan: &Plan, pieces: &BTreeSet<Piece>) -> Result<Values, ExecError> {
    let until = Instant::now() + plan.wait;
    let mut last: Option<FetchError> = None;
    loop {
        match timeout_at(until, Values::fetch(&plan.socket, pieces)).await {
            Ok(Ok(values)) => return Ok(values),
            Ok(Err(error)) if error.is_final() && !error.is_missing() => {
                return Err(ExecError::Fetch(error));
            }
            Ok(Err(error)) => {
                if last.is_none() {
                    say(format_args!(
                        "{error}; waiting for up to {}",
                        humantime::format_duration(plan.wait)
                    ));
                }
                last = Some(error);
            }
            Err(_) => {}
        }
        // An answer that is there at once is taken, however late it is.
        if Instant::now() >= until {
            return Err(ExecError::Waited {
                waited: plan.wait,
                error: last,
            });
        }
        sleep_until(until.min(Instant::now() + PAUSE)).await;
    }
}

/// The signal that ends the waiting for secrets.
async fn end_asked_for(signals: &mut Signals) -> Signal {
    loop {
        match signals.next().await {
            Heard::Signal(SignalName(signal)) if ends(signal) || signal == Signal::HUP => {
                return signal;
            }
            Heard::Signal(SignalName(Signal::TSTP)) => {
                let _ = kill_current_process_group(Signal::STOP);
            }
            Heard::Signal(_) | Heard::Child => {}
        }
    }
}

/// Whether whoever sends it wants the end.
fn ends(signal: Signal) -> bool {
    [Signal::TERM, Signal::INT, Signal::QUIT].contains(&signal)
}

fn exit_of(signal: Signal) -> u8 {
    u8::try_from(128 + signal.as_raw()).unwrap_or(u8::MAX)
}

struct Supervisor {
    plan: Plan,
    terminal: Terminal,
    given: Given,
    /// When the program, which was asked to end so that it can be started anew, is killed.
    stopping: Option<Instant>,
    /// Nothing is started any more.
    end_asked_for: bool,
    /// The program before, which may have left the terminal behind.
    last: Option<Pid>,
}

impl Supervisor {
    fn start(&mut self) -> Result<Program, ExecError> {
        let foreground = self.terminal.is_ours(self.last);
        let program = Program::start(
            &self.plan,
            self.given.values(),
            self.given.folder(),
            foreground,
        )?;
        self.last = Some(program.pid());
        Ok(program)
    }

    /// Starts it with what is ready for it; gives the exit code if somebody wants the end while the system refuses a process.
    async fn start_anew(
        &mut self,
        signals: &mut Signals,
    ) -> Result<ControlFlow<u8, Program>, ExecError> {
        self.stopping = None;
        if let Err(error) = self.given.take_effect() {
            say(format_args!(
                "{error}; starting the program with the values that it had"
            ));
        }
        let until = Instant::now() + self.plan.wait;
        let mut pause = PAUSE;
        loop {
            match self.start() {
                Ok(program) => return Ok(ControlFlow::Continue(program)),
                Err(error) if Instant::now() >= until => return Err(error),
                Err(error) if pause == PAUSE => {
                    say(format_args!(
                        "{error}; trying for up to {}",
                        humantime::format_duration(self.plan.wait)
                    ));
                }
                Err(_) => {}
            }
            tokio::select! {
                signal = end_asked_for(signals) => {
                    if let Some(last) = self.last {
                        self.terminal.take_back(last);
                    }
                    return Ok(ControlFlow::Break(exit_of(signal)));
                }
                () = sleep(pause) => {}
            }
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    async fn look_after(
        &mut self,
        mut program: Program,
        signals: &mut Signals,
        mut changes: watch::Receiver<Arc<Values>>,
    ) -> Result<u8, ExecError> {
        loop {
            let (killing, again) = (self.stopping, self.given.again());
            tokio::select! {
                heard = signals.next() => match heard {
                    Heard::Signal(SignalName(signal)) => self.pass_on(signal, &program),
                    Heard::Child => {
                        let restarts = self.stopping.is_some() && !self.end_asked_for;
                        if restarts && program.has_ended() {
                            // Whatever it left would hold what the next one needs, and know what is old.
                            program.signal_group(Signal::KILL);
                        }
                        match program.reap() {
                            Some(Fate::Ended { exit }) if restarts && !was_interrupted(exit) => {
                                if let Ok(true) = changes.has_changed() {
                                    let values = Arc::clone(&changes.borrow_and_update());
                                    self.change(values, &program, Try::First);
                                }
                                match self.start_anew(signals).await? {
                                    ControlFlow::Continue(next) => program = next,
                                    ControlFlow::Break(exit) => return Ok(exit),
                                }
                            }
                            Some(Fate::Ended { exit }) => {
                                self.terminal.take_back(program.pid());
                                return Ok(exit);
                            }
                            Some(Fate::Stopped(signal)) => self.suspend(signal, &program),
                            None => {}
                        }
                    }
                },
                Ok(()) = changes.changed() => {
                    let values = Arc::clone(&changes.borrow_and_update());
                    self.change(values, &program, Try::First);
                }
                () = at(again) => {
                    let values = Arc::clone(&changes.borrow_and_update());
                    self.change(values, &program, Try::Again);
                }
                () = at(killing) => {
                    self.stopping = killing.map(|at| at + self.plan.grace.max(Duration::from_secs(1)));
                    say(format_args!("the program did not end within {}; killing it", humantime::format_duration(self.plan.grace)));
                    program.signal_group(Signal::KILL);
                }
            }
        }
    }

    fn pass_on(&mut self, signal: Signal, program: &Program) {
        self.end_asked_for |= ends(signal);
        if signal == Signal::CONT {
            // By a shell's `fg`, if the terminal is ours.
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
            // The shell's SIGCONT, which we heard as well, resumes the program.
            Suspended::Resumed | Suspended::NobodyWatches => {}
            Suspended::NobodyResumes if signal == Signal::STOP.as_raw() => {}
            Suspended::NobodyResumes => {
                self.terminal.give(program.pid());
                program.signal_group(Signal::CONT);
            }
        }
    }

    fn change(&mut self, values: Arc<Values>, program: &Program, nth: Try) {
        let changed = self.given.changed(&values);
        if changed.is_empty() && (self.stopping.is_none() || self.end_asked_for) {
            self.given.is_up_to_date();
            return;
        }
        let changed = names(&changed);
        if self.end_asked_for {
            self.given.is_up_to_date();
            say(format_args!(
                "{changed} changed; the program was asked to end and is not told"
            ));
            return;
        }
        // Before the program is ended for values that it can't be started with.
        let given = match self.plan.on_change {
            OnChange::Restart => self.given.prepare_start(&self.plan, values),
            OnChange::Ignore | OnChange::Signal(_) => self
                .given
                .prepare(&self.plan, values)
                .and_then(|()| self.given.take_effect())
                .map_err(ExecError::from),
        };
        if let Err(error) = given {
            if nth == Try::First {
                let again = if self.given.again().is_some() {
                    "; trying again"
                } else {
                    ""
                };
                let what = if self.stopping.is_some() {
                    "is started with those before"
                } else {
                    "goes on with the values that it has"
                };
                say(format_args!(
                    "{changed} changed: {error}; the program {what}{again}"
                ));
            }
            return;
        }
        match self.plan.on_change {
            OnChange::Ignore => {}
            OnChange::Signal(signal) => {
                say(format_args!(
                    "{changed} changed; sending SIG{signal} to {}",
                    shown(&self.plan.program)
                ));
                program.signal(signal.0);
            }
            // The program that is started next gets them.
            OnChange::Restart if self.stopping.is_some() => {}
            OnChange::Restart => {
                say(format_args!(
                    "{changed} changed; restarting {}",
                    shown(&self.plan.program)
                ));
                self.stopping = Some(Instant::now() + self.plan.grace);
                program.signal(Signal::TERM);
                // One that is stopped would not hear of it.
                program.signal(Signal::CONT);
            }
        }
    }
}

/// Whether values are seen for the first time, or their files could not be written before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Try {
    First,
    Again,
}

/// Whether somebody typed ^C or ^\ at the program, which alone hears of it: he wants the end, not the next one.
fn was_interrupted(exit: u8) -> bool {
    [Signal::INT, Signal::QUIT].map(exit_of).contains(&exit)
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

fn shown(program: &std::ffi::OsStr) -> std::path::Display<'_> {
    Path::new(program).display()
}
