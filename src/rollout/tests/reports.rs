//! Reports.

use super::simulation::*;
use crate::rollout::*;

#[test]
fn a_report_shows_every_step_with_times() {
    let mut world = World::new();
    let (state, actions) = world.begin_despite_blockers(retiring());
    let end = world.run(state, actions);
    let report = Report::of(&end);
    assert!(report.is_finished);
    assert_eq!((report.replaced, report.version), (1, Some(2)));
    assert!(report.steps.iter().all(|step| step.began.is_some()));
    assert_eq!(report.ended, Some(world.now));
    let markdown = report.markdown().expect("a sound template");
    let html = report.html().expect("a sound template");
    for step in &report.steps {
        assert!(html.contains(&step.text), "{}", step.text);
    }
    for text in [&report.rollout, &report.plan_sha256, &report.sha256] {
        assert!(markdown.contains(text.as_str()) && html.contains(text.as_str()));
    }
    let rows = markdown
        .lines()
        .filter(|line| line.starts_with("| 1"))
        .count();
    assert!(rows >= 6, "a table row for each step:\n{markdown}");
}

#[test]
fn a_report_of_a_rollback_says_why() {
    let mut world = World::new();
    let (state, actions) = world.begin(quick(), Intent::Rotate);
    let state = world.run_until(state, actions, |state, _| {
        state.present().describe().starts_with("soak wave canary")
    });
    world.sidecar("a").damage = 1;
    let (state, actions) = step(state, Event::Woken, world.now);
    let report = Report::of(&world.run(state, actions));
    assert!(!report.is_finished);
    assert!(report.outcome.contains("rolled back"), "{}", report.outcome);
    assert!(
        report
            .anomalies
            .iter()
            .any(|event| event.text.contains("failed decrypts"))
    );
    let later = report.steps.last().expect("a step");
    assert_eq!(later.began, None, "it never came to that");
}

#[test]
fn text_from_outside_forms_no_markup() {
    let mut world = World::new();
    let hostile = "<img src=x onerror=alert(1)> | [a](http://b) `c`";
    let sidecar = world.sidecars.remove("a").expect("a sidecar");
    world.sidecars.insert(hostile.into(), sidecar);
    let (state, actions) = world.begin(quick(), Intent::Rotate);
    let state = world.run_until(state, actions, |state, _| {
        state.present().describe().starts_with("prove")
    });
    world.sidecar(hostile).proves = false;
    let (state, actions) = step(state, Event::Woken, world.now);
    let report = Report::of(&world.run(state, actions));
    let html = report.html().expect("a sound template");
    assert!(!html.contains("<img"), "escaped");
    let markdown = report.markdown().expect("a sound template");
    let row = markdown
        .lines()
        .find(|line| line.contains("onerror"))
        .expect("a row");
    assert!(
        row.contains("\\<img") && row.contains("\\| \\[a\\]"),
        "{row}"
    );
}
