//! `sidekey rollout run`.

use std::{fs, path::Path};

use clap::Args;
use serde::Serialize;

use super::{
    progress::{Progress, Wanted, conclude},
    target::{Opened, Target, failed},
};
use crate::{
    cli::{
        output::{CliError, Format, note, print, printable},
        record::Completed,
        runtime::unless_signalled,
    },
    crypto::RolloutId,
    rollout::{Assessment, Finding, Intent, Plan, Strategy},
};

#[derive(Debug, Args)]
pub(in crate::cli) struct Run {
    #[command(flatten)]
    target: Target,
    /// A built-in strategy (quick, standard, careful), or a file.
    #[arg(long, value_name = "NAME|FILE", default_value = "standard")]
    strategy: String,
    /// Use this version, which is pending, instead of generating one.
    #[arg(long, value_name = "VERSION", conflicts_with = "compromised")]
    adopt: Option<u32>,
    /// Replace this version, which others may know, everywhere at once, and flag it.
    ///
    /// Ends a rollout that is active. There is no way back.
    #[arg(long, value_name = "VERSION")]
    compromised: Option<u32>,
    /// Let this sidecar be unreachable or late; repeat for several.
    #[arg(long, value_name = "SIDECAR")]
    max_unavailable: Vec<String>,
    /// Show what was found and the plan, and change nothing.
    #[arg(long)]
    dry_run: bool,
}

/// A plan for people and programs.
#[derive(Serialize)]
struct Preview<'a> {
    keyring: String,
    strategy: &'a str,
    plan_sha256: String,
    can_start: bool,
    findings: &'a [Finding],
    steps: Vec<String>,
    /// The time that soaks take, in seconds.
    soaks_seconds: u64,
}

impl Run {
    pub(super) async fn run(self, format: Format) -> Result<(), CliError> {
        let mut strategy = strategy(&self.strategy)?;
        strategy.max_unavailable.extend(self.max_unavailable);
        let intent = match (self.adopt, self.compromised) {
            (Some(version), _) => Intent::Adopt { version },
            (None, Some(version)) => Intent::ReplaceCompromised { version },
            (None, None) => Intent::Rotate,
        };
        let (audit, config) = (
            self.target.access.audit.clone(),
            self.target.access.config().cloned(),
        );
        let mut details = self.target.details();
        details.insert("strategy".into(), strategy.name.as_str().into());
        let is_dry = self.dry_run;
        if let Some(via) = self.target.on.via_hub()? {
            if is_dry {
                return Err(CliError::usage(
                    "--dry-run reads the manifest, so it needs the keyring's location: list it in \
                     the fleet file, and leave out --via-hub",
                ));
            }
            let key = self.target.key_of_requester()?;
            let work = via.order(strategy, intent, &key, format);
            let work = audit.around(config.as_ref(), "rollout.order", details, work);
            return unless_signalled(Box::pin(work)).await.map_err(left_alone);
        }
        let Opened {
            mut runner,
            requester,
        } = self.target.open()?;
        if strategy.approvals.is_some() && requester.key.is_none() {
            return Err(CliError::usage(
                "the strategy asks for approvals, and the requester's don't count: name the \
                 requester's key with --requester-key or --sign-key",
            ));
        }
        let (assessment, plan) = runner
            .plan(strategy, intent, requester)
            .await
            .map_err(CliError::from_run)?;
        if is_dry {
            print_preview(format, &assessment, &plan)?;
        }
        refuse_blockers(&assessment)?;
        if is_dry {
            return Ok(());
        }
        for finding in &assessment.findings {
            note(format_args!(
                "{}: {}",
                finding.level,
                printable(&finding.message)
            ));
        }
        let id = RolloutId::generate().map_err(failed)?;
        let work = async {
            let mut progress = Progress::new(format, 0);
            let mut watch = |state: &_| progress.show(state);
            let state = Box::pin(runner.run(plan, assessment, id, &mut watch))
                .await
                .map_err(CliError::from_run)?;
            drop(progress);
            conclude(&state, Wanted::Rotation)?;
            Ok(Completed::default())
        };
        let work = audit.around(config.as_ref(), "rollout.run", details, work);
        unless_signalled(Box::pin(work)).await.map_err(interrupted)
    }
}

/// Says what happens to a rollout whose command was interrupted.
pub(super) fn interrupted(error: CliError) -> CliError {
    if error.is_interrupted() {
        error.with_hint("the rollout stays where it is; `rollout resume` continues it")
    } else {
        error
    }
}

/// Says what happens to a rollout that is run elsewhere.
fn left_alone(error: CliError) -> CliError {
    if error.is_interrupted() {
        error.with_hint("the signer goes on with the rollout; `rollout pause` stops it")
    } else {
        error
    }
}

fn strategy(text: &str) -> Result<Strategy, CliError> {
    if let Some(strategy) = Strategy::built_in(text) {
        return Ok(strategy);
    }
    if !text.contains(['/', '.']) {
        return Err(CliError::usage(format!(
            "there is no strategy {text:?}; built in are {}; anything else is a file",
            Strategy::BUILT_IN.join(", ")
        )));
    }
    let content = fs::read_to_string(Path::new(text))
        .map_err(|error| failed(format!("can't read {text}: {error}")))?;
    Strategy::from_toml(&content)
        .map_err(|problems| failed(format!("{text}: {}", problems.join("\n"))))
}

fn refuse_blockers(assessment: &Assessment) -> Result<(), CliError> {
    let blockers: Vec<String> = assessment
        .blockers()
        .map(|finding| format!("  - {} ({})", printable(&finding.message), finding.code))
        .collect();
    if blockers.is_empty() {
        return Ok(());
    }
    Err(CliError::refused(format!(
        "the rollout can't start, and nothing was changed:\n{}",
        blockers.join("\n")
    )))
}

fn print_preview(format: Format, assessment: &Assessment, plan: &Plan) -> Result<(), CliError> {
    let steps: Vec<String> = plan.steps.iter().map(|step| step.describe()).collect();
    let soaks = plan
        .steps
        .iter()
        .map(|step| step.minimum().0.as_secs())
        .sum();
    let preview = Preview {
        keyring: plan.keyring.to_string(),
        strategy: &plan.strategy.name,
        plan_sha256: crate::encoding::to_hex(&plan.digest()),
        can_start: assessment.blockers().next().is_none(),
        findings: &assessment.findings,
        steps,
        soaks_seconds: soaks,
    };
    print(format, &preview, || text(&preview))
}

fn text(preview: &Preview<'_>) -> String {
    let mut text = format!(
        "keyring {}, strategy {}\n",
        preview.keyring, preview.strategy
    );
    for finding in preview.findings {
        text += &format!(
            "{}: {} ({})\n",
            finding.level, finding.message, finding.code
        );
    }
    for (index, step) in preview.steps.iter().enumerate() {
        text += &format!("{:>3}. {step}\n", index + 1);
    }
    let soaks = crate::model::Span::from_secs(preview.soaks_seconds);
    text + &format!("soaks take {soaks}; nothing was changed\n")
}
