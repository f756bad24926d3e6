use std::{fs, os::unix::process::ExitStatusExt, process::Command};

use serde_json::Value;

use crate::app::testing::{HOUR, MINUTE, SECOND, World};

#[tokio::test(start_paused = true)]
async fn the_file_is_rendered_again_when_the_previous_value_expires() {
    let world = World::new();
    let source = world.secret("file:a");
    source.rotate("1", "old");
    let config = "[[secret]]\nname = \"a\"\nsource = \"file:a\"\nprevious_ttl = \"1h\"\n\
                  [[render]]\nfile = \"out\"\ndebounce = \"0s\"\n\
                  template_text = \"{{ secret('a').value }}|\
                  {{ secret('a').previous or 'none' }}\"\n";
    let sidecar = world.start_with(config, &[]).await;
    let is_written =
        |text: &str| fs::read_to_string(world.path("out")).is_ok_and(|out| out == text);
    assert!(is_written("old|none"));
    source.rotate("2", "new");
    world.wait("the new value", || is_written("new|old")).await;
    world.advance(HOUR - MINUTE).await;
    assert!(is_written("new|old"));
    world.advance(2 * MINUTE).await;
    world.wait("the expiry", || is_written("new|none")).await;
    let out = world.path("out");
    let writes = format!("sidekey_render_writes_total{{file={out:?}}} 3");
    sidecar.wait_metric(&writes).await;
}

#[tokio::test(start_paused = true)]
async fn a_field_is_decoded_and_trimmed_before_it_is_written() {
    let world = World::new();
    let source = world.secret("file:a");
    source.rotate("1", r#"{"key.store":"AP+A","password":"pw\n"}"#);
    let config = "[[secret]]\nname = \"a\"\nsource = \"file:a\"\n\
                  [[render]]\nfile = \"store\"\nsecret = \"a\"\nfield = \"key.store\"\n\
                  decode = \"base64\"\ndebounce = \"0s\"\n\
                  [[render]]\nfile = \"password\"\nsecret = \"a\"\nfield = \"password\"\n\
                  trim = \"newline\"\n";
    let sidecar = world.start_with(config, &[]).await;
    let content = |file: &str| fs::read(world.path(file)).expect("written");
    assert_eq!(content("store"), [0, 255, 128]);
    assert_eq!(content("password"), b"pw");
    source.rotate("2", r#"{"key.store":"not base64","password":"pw"}"#);
    sidecar
        .wait_status("the failure", |status| {
            let error = &status["renders"][0]["last_error"]["message"];
            error
                .as_str()
                .is_some_and(|error| error.contains("not base64: expected"))
        })
        .await;
    assert_eq!(content("store"), [0, 255, 128], "the file stays as it is");
}

#[tokio::test(start_paused = true)]
async fn a_template_file_is_taken_up_when_it_changes_and_only_if_it_is_valid() {
    let world = World::new();
    let source = world.secret("file:a");
    source.rotate("1", "old");
    let template = world.path("t.j2");
    fs::write(&template, "A={{ secret('a') }}").unwrap();
    let config = "[[secret]]\nname = \"a\"\nsource = \"file:a\"\n\
                  [[render]]\nfile = \"out\"\ntemplate = \"t.j2\"\ndebounce = \"0s\"\n";
    let sidecar = world.start_with(config, &[]).await;
    let is_written =
        |text: &str| fs::read_to_string(world.path("out")).is_ok_and(|out| out == text);
    assert!(is_written("A=old"));
    // Longer than the interval at which files are inspected.
    let change = async |text: &str| {
        // Whole, as editors write: an empty template would be valid.
        fs::write(world.path("t.new"), text).unwrap();
        fs::rename(world.path("t.new"), &template).unwrap();
        world.advance(5 * SECOND).await;
    };
    change("B={{ secret('a') }}").await;
    world.wait("the new template", || is_written("B=old")).await;

    change("C={{ secret('b') }}").await;
    let is_reported = |status: &Value| {
        let error = &status["renders"][0]["last_error"]["message"];
        error
            .as_str()
            .is_some_and(|error| error.contains("t.j2:1: unknown secret"))
    };
    sidecar.wait_status("the failure", is_reported).await;
    assert!(is_written("B=old"));
    // A rotation isn't held up by it.
    source.rotate("2", "new");
    world.wait("the new value", || is_written("B=new")).await;
    assert!(is_reported(&sidecar.status().await));

    change("D={{ secret('a') }}").await;
    world.wait("a valid template", || is_written("D=new")).await;
    let works = |status: &Value| status["renders"][0]["last_error"].is_null();
    sidecar.wait_status("the recovery", works).await;
}

#[tokio::test(start_paused = true)]
async fn a_process_is_signalled_once_its_pid_file_names_it() {
    let world = World::new();
    world.secret("file:a").rotate("1", "value");
    let pid_file = world.path("pid");
    // Greater than any process id of Linux.
    fs::write(&pid_file, "4194305\n").unwrap();
    let config = "[[secret]]\nname = \"a\"\nsource = \"file:a\"\n[[render]]\nfile = \"out\"\n\
                  secret = \"a\"\nsignal = \"TERM\"\npid_file = \"pid\"\nretries = 1\n";
    let sidecar = world.start_with(config, &[]).await;
    let failed = "sidekey_render_notices_total{file=\"OUT\",result=\"failed\"} 2";
    let failed = failed.replace("OUT", &world.path("out").display().to_string());
    sidecar.wait_metric(&failed).await;
    world.advance(MINUTE).await;
    sidecar.wait_metric(&failed).await;

    let mut process = Command::new("sleep").arg("600").spawn().unwrap();
    fs::write(&pid_file, process.id().to_string()).unwrap();
    world.advance(5 * SECOND).await;
    let mut status = None;
    world
        .wait("the signal", || {
            status = process.try_wait().unwrap();
            status.is_some()
        })
        .await;
    assert_eq!(status.unwrap().signal(), Some(15));
}
