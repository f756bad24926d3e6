//! Runs a program with secrets in its environment or in files, and restarts or signals it when they
//! change (docs/exec.md).
//!
//! Secret values pass through here and are zeroized when replaced; what the program received is
//! beyond control.

mod bindings;
mod error;
mod folder;
mod launch;
mod log;
mod plan;
mod program;
mod signals;
mod staging;
mod supervisor;
mod terminal;
mod values;
mod watcher;

pub use self::{
    bindings::{BindingError, Bindings, EnvBinding, FieldsBinding, FileBinding},
    error::ExecError,
    folder::{FileAccess, FolderError},
    launch::{Launch, LaunchError},
    plan::{OnChange, Plan},
    program::StartError,
    signals::{SignalName, UnknownSignal},
    supervisor::run,
    values::FetchError,
};
