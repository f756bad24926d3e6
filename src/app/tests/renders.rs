use std::fs;

use crate::app::testing::{HOUR, MINUTE, World};

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
