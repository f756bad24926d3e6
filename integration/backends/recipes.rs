//! The programs in docs/recipes.md work as written.

use std::{fs, path::Path, process::Command};

use crate::support::{
    harness::{Sidecar, World, uid},
    servers::installed,
};

const PAGE: &str = include_str!("../../docs/recipes.md");

/// Returns the page's programs in one language, in order.
fn programs(language: &str) -> Vec<&'static str> {
    let fence = format!("```{language}\n");
    PAGE.split(fence.as_str())
        .skip(1)
        .map(|rest| rest.split_once("\n```").unwrap().0)
        .collect()
}

/// A sidecar that provides data keys and a password, and a file that is too long for a message.
fn world() -> (World, Sidecar) {
    let world = World::with_demo();
    let uid = uid();
    let operations = r#"["encrypt", "decrypt", "rewrap", "inspect", "data-key"]"#;
    let rule = format!(
        "[[policy]]\nkeyrings = \"*\"\noperations = {operations}\nsecrets = \"*\"\nuids = [{uid}]\n"
    );
    let secret = "[[secret]]\nname = \"orders-db\"\nsource = \"file:db.json\"\nrequired = true\n";
    fs::write(
        world.path("db.json"),
        r#"{"user": "orders", "password": "first"}"#,
    )
    .unwrap();
    let rule = format!("{rule}{secret}");
    let sidecar = world.start_with("one", &rule, &["demo"]);
    let lines: String = (0..200_000)
        .map(|line| format!("figure {line}\n"))
        .collect();
    fs::write(world.path("report.txt"), lines).unwrap();
    (world, sidecar)
}

fn run(world: &World, sidecar: &Sidecar, command: &mut Command) {
    let output = command
        .current_dir(world.path(""))
        .env("SIDEKEY_SOCKET", &sidecar.socket)
        .output()
        .unwrap();
    let (out, err) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert!(
        output.status.success() && out.ends_with("same\n"),
        "{out}\n{err}"
    );
}

fn run_file(
    interpreter: &Path,
    arguments: &[&str],
    name: &str,
    language: &str,
    programs_expected: usize,
) {
    let (world, sidecar) = world();
    let programs = programs(language);
    assert_eq!(programs.len(), programs_expected);
    for program in programs {
        fs::write(world.path(name), program).unwrap();
        run(
            &world,
            &sidecar,
            Command::new(interpreter).args(arguments).arg(name),
        );
    }
}

#[test]
fn curl() {
    run_file(Path::new("sh"), &[], "recipe.sh", "sh", 1);
}

/// GNU's `base64` breaks lines after 57 bytes, and a header has one line.
#[test]
fn curl_with_a_long_aad() {
    let (world, sidecar) = world();
    let aad = "users/7/reports/".repeat(20);
    let program = programs("sh")[0].replace("crypt report <", &format!("crypt {aad} <"));
    assert!(program.contains(&aad));
    run(&world, &sidecar, Command::new("sh").args(["-c", &program]));
}

#[test]
fn python_with_and_without_a_data_key_and_with_a_password() {
    run_file(&installed("moto/bin/python"), &[], "recipe.py", "python", 3);
}

#[test]
fn node() {
    run_file(Path::new("node"), &[], "recipe.mjs", "js", 1);
}

#[test]
fn go() {
    run_file(Path::new("go"), &["run"], "recipe.go", "go", 1);
}
