//! Bodies of any size: what becomes a stream, what breaks one off, and what is left then.

use std::{
    fs::{self, File, OpenOptions},
    process::{Command, Stdio},
};

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::{Method, Response, StatusCode, body::Incoming};

use crate::support::harness::{
    Client, JSON, OCTETS, RequestBody, Sidecar, World, binary, channel, unannounced, wait, whole,
};

const MESSAGE: u8 = 1;
const STREAM: u8 = 2;
const MIB: usize = 1 << 20;
/// A whole chunk of a stream, and what stands before the first.
const CHUNK: usize = (64 << 10) + 16;
const PREFIX: usize = 33;

fn text(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at % 251) as u8).collect()
}

async fn post(client: &mut Client, operation: &str, body: RequestBody) -> Response<Incoming> {
    client
        .open(
            Method::POST,
            &format!("/v1/keyrings/demo/{operation}"),
            &[OCTETS],
            body,
        )
        .await
        .unwrap()
}

async fn bytes(response: Response<Incoming>) -> Vec<u8> {
    assert_eq!(response.status(), StatusCode::OK);
    let announced = response
        .headers()
        .get("content-length")
        .map(|length| length.to_str().unwrap().parse::<usize>().unwrap());
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    assert!(announced.is_none_or(|length| length == bytes.len()));
    bytes.to_vec()
}

/// What came of an answer before it broke off, which it must.
async fn broken(response: Response<Incoming>) -> Vec<u8> {
    assert_eq!(response.status(), StatusCode::OK);
    let mut body = response.into_body();
    let mut came = Vec::new();
    loop {
        match body
            .frame()
            .await
            .expect("the answer ended as if it were whole")
        {
            Ok(frame) => came.extend_from_slice(&frame.into_data().unwrap_or_default()),
            Err(_) => return came,
        }
    }
}

async fn problem(response: Response<Incoming>) -> String {
    let body = response.into_body().collect().await.unwrap().to_bytes();
    serde_json::from_slice::<serde_json::Value>(&body).unwrap()["code"]
        .as_str()
        .unwrap()
        .to_owned()
}

async fn both(sidecar: &Sidecar) -> [Client; 2] {
    [
        Client::http1(&sidecar.socket).await,
        Client::http2(&sidecar.socket).await,
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_over_a_mebibyte_or_of_unknown_length_are_streams() {
    let world = World::with_demo();
    let sidecar = world.start();
    for mut client in both(&sidecar).await {
        for (length, suite) in [
            (0, MESSAGE),
            (MIB, MESSAGE),
            (MIB + 1, STREAM),
            (2 * MIB, STREAM),
            (3 * MIB + 77, STREAM),
        ] {
            let plaintext = text(length);
            let sealed = post(&mut client, "encrypt", whole(plaintext.clone())).await;
            assert_eq!(sealed.headers()["sidekey-key-version"], "1");
            assert!(
                sealed.headers().contains_key("content-length"),
                "a known length is passed on"
            );
            let sealed = bytes(sealed).await;
            assert_eq!(sealed[0], suite, "{length}");
            let opened = post(&mut client, "decrypt", whole(sealed.clone())).await;
            // HTTP/2 ends an empty answer with its head.
            assert!(length == 0 || opened.headers().contains_key("content-length"));
            assert!(bytes(opened).await == plaintext, "{length}");
            // However it comes.
            assert!(
                bytes(post(&mut client, "decrypt", unannounced(sealed)).await).await == plaintext,
                "{length}"
            );
        }
        for length in [0, 1, 64 << 10, (64 << 10) + 1, 2 * MIB] {
            let plaintext = text(length);
            let sealed =
                bytes(post(&mut client, "encrypt", unannounced(plaintext.clone())).await).await;
            assert_eq!(
                (sealed[0], sealed.len()),
                (
                    STREAM,
                    PREFIX + length + 16 * length.div_ceil(64 << 10).max(1)
                )
            );
            assert!(
                bytes(post(&mut client, "decrypt", whole(sealed)).await).await == plaintext,
                "{length}"
            );
        }
    }
}

#[tokio::test]
async fn a_short_stream_is_read_wherever_a_message_is() {
    use base64::{Engine, engine::general_purpose::STANDARD};
    let world = World::with_demo();
    let sidecar = world.start();
    let mut client = sidecar.client().await;
    let sealed = bytes(post(&mut client, "encrypt", unannounced("short")).await).await;
    let ciphertext = sidekey::crypto::to_text(&sealed);
    let opened = client
        .post(
            "/v1/keyrings/demo/decrypt",
            &[JSON],
            format!(r#"{{"ciphertext": "{ciphertext}"}}"#),
        )
        .await
        .ok();
    assert_eq!(opened.json()["plaintext"], STANDARD.encode("short"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_begins_before_its_request_ends() {
    let world = World::with_demo();
    let sidecar = world.start();
    for mut client in both(&sidecar).await {
        let (sender, body) = channel();
        let feed = async {
            for _ in 0..3 {
                sender.send(Ok(Bytes::from(text(64 << 10)))).await.unwrap();
            }
        };
        let (response, ()) = tokio::join!(post(&mut client, "encrypt", body), feed);
        let mut answer = response.into_body();
        let first = answer.frame().await.unwrap().unwrap().into_data().unwrap();
        assert_eq!(first[0], STREAM);
        drop(sender);
        answer.collect().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_is_rewrapped_under_the_primary() {
    let world = World::with_demo();
    let sidecar = world.start();
    let plaintext = text(3 * MIB);
    let mut client = sidecar.client().await;
    let old = bytes(post(&mut client, "encrypt", whole(plaintext.clone())).await).await;
    world.keyring("rotate", "demo", &["--activate", "now"]);
    sidecar.wait_generation(3);
    let new = post(&mut client, "rewrap", whole(old.clone())).await;
    assert_eq!(new.headers()["sidekey-key-version"], "2");
    let new = bytes(new).await;
    assert_eq!(
        (new.len(), &new[..9]),
        (old.len(), &[&old[..5], &[0, 0, 0, 2]].concat()[..])
    );
    assert!(bytes(post(&mut client, "decrypt", whole(new)).await).await == plaintext);
    assert!(bytes(post(&mut client, "decrypt", unannounced(old)).await).await == plaintext);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bad_chunk_breaks_the_answer_off_after_the_good_ones() {
    let world = World::with_demo();
    let sidecar = world.start();
    let plaintext = text(40 * (64 << 10));
    let sealed = bytes(
        post(
            &mut sidecar.client().await,
            "encrypt",
            whole(plaintext.clone()),
        )
        .await,
    )
    .await;
    let chunk = |number: usize| PREFIX + number * CHUNK..PREFIX + (number + 1) * CHUNK;
    let mut flipped = sealed.clone();
    flipped[PREFIX + 20 * CHUNK + 5] ^= 1;
    let without = [&sealed[..chunk(20).start], &sealed[chunk(20).end..]].concat();
    let doubled = [
        &sealed[..chunk(20).start],
        &sealed[chunk(19)],
        &sealed[chunk(20).start..],
    ]
    .concat();
    let swapped = [
        &sealed[..chunk(20).start],
        &sealed[chunk(21)],
        &sealed[chunk(20)],
        &sealed[chunk(21).end..],
    ]
    .concat();
    for operation in ["decrypt", "rewrap"] {
        for bad in [&flipped, &without, &doubled, &swapped] {
            for mut client in both(&sidecar).await {
                let came = broken(post(&mut client, operation, whole(bad.clone())).await).await;
                if operation == "decrypt" {
                    // The connection may be gone before all of them were taken.
                    assert!(
                        came.len() <= 20 * (64 << 10) && plaintext.starts_with(&came),
                        "only what was verified"
                    );
                }
                let mut client = sidecar.client().await;
                let came =
                    broken(post(&mut client, operation, unannounced(bad.clone())).await).await;
                assert!(operation == "rewrap" || plaintext.starts_with(&came));
            }
        }
    }
    // The end is missing.
    for end in [chunk(39).start, chunk(39).start + 100] {
        let mut client = sidecar.client().await;
        let came =
            broken(post(&mut client, "decrypt", unannounced(sealed[..end].to_vec())).await).await;
        assert!(came.len() < plaintext.len() && plaintext.starts_with(&came));
    }
    let mut client = sidecar.client().await;
    let came = broken(
        post(
            &mut client,
            "decrypt",
            unannounced([&sealed[..], b"x"].concat()),
        )
        .await,
    )
    .await;
    assert!(came.len() < plaintext.len());
    assert!(sidecar.ops("/metrics").1.contains(
        r#"sidekey_requests_total{keyring="demo",operation="decrypt",code="decryption_failed"}"#
    ));
}

#[tokio::test]
async fn what_fails_at_once_is_a_problem_and_not_a_broken_answer() {
    let world = World::with_demo();
    let sidecar = world.start();
    let mut client = sidecar.client().await;
    let sealed = bytes(post(&mut client, "encrypt", whole(text(2 * MIB))).await).await;
    let change = |at: usize| {
        let mut changed = sealed.clone();
        changed[at] ^= 0x40;
        changed
    };
    for (body, code) in [
        (change(PREFIX + 9), "decryption_failed"),
        (change(1), "wrong_keyring"),
        (change(7), "key_version_unavailable"),
        (
            sealed[..PREFIX + 20 * CHUNK + 5].to_vec(),
            "malformed_ciphertext",
        ),
        ([&[MESSAGE][..], &sealed[1..]].concat(), "body_too_large"),
    ] {
        assert_eq!(
            problem(post(&mut sidecar.client().await, "decrypt", whole(body)).await).await,
            code
        );
    }
    let headers = [OCTETS, ("sidekey-aad", "b3RoZXI=")];
    let response = client
        .open(
            Method::POST,
            "/v1/keyrings/demo/decrypt",
            &headers,
            whole(sealed),
        )
        .await
        .unwrap();
    assert_eq!(problem(response).await, "decryption_failed");
}

#[test]
fn a_command_leaves_nothing_of_a_stream_that_broke_off() {
    let world = World::with_demo();
    let sidecar = world.start();
    let socket = sidecar.socket.to_str().unwrap();
    let (plain, sealed, out) = (world.path("plain"), world.path("sealed"), world.path("out"));
    fs::write(&plain, text(5 * MIB)).unwrap();
    let run = |operation: &str, from: &std::path::Path, more: &[&str], stdout: Stdio| {
        let arguments = [&[operation, "--keyring", "demo", "--socket", socket], more].concat();
        Command::new(binary())
            .args(arguments)
            .stdin(File::open(from).unwrap())
            .stdout(stdout)
            .output()
            .unwrap()
    };
    let to_out = ["--out", out.to_str().unwrap()];
    let ok = |output: std::process::Output| {
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        )
    };

    ok(run(
        "encrypt",
        &plain,
        &["--out", sealed.to_str().unwrap()],
        Stdio::null(),
    ));
    ok(run("decrypt", &sealed, &to_out, Stdio::null()));
    assert!(fs::read(&out).unwrap() == text(5 * MIB));
    fs::remove_file(&out).unwrap();

    let mut bytes = fs::read(&sealed).unwrap();
    bytes[3 * MIB] ^= 1;
    fs::write(&sealed, &bytes).unwrap();
    let before = fs::read_dir(out.parent().unwrap()).unwrap().count();
    let output = run("decrypt", &sealed, &to_out, Stdio::null());
    assert_eq!(output.status.code(), Some(1));
    assert!(
        String::from_utf8_lossy(&output.stderr).contains("incomplete body"),
        "{output:?}"
    );
    assert_eq!(
        fs::read_dir(out.parent().unwrap()).unwrap().count(),
        before,
        "no part is left"
    );

    // What the shell opened: emptied again, and what stood there before stays.
    assert_eq!(
        run("decrypt", &sealed, &[], File::create(&out).unwrap().into())
            .status
            .code(),
        Some(1)
    );
    assert_eq!(fs::read(&out).unwrap(), b"");
    fs::write(&out, "kept").unwrap();
    let appending = OpenOptions::new().append(true).open(&out).unwrap();
    assert_eq!(
        run("decrypt", &sealed, &[], appending.into()).status.code(),
        Some(1)
    );
    assert_eq!(fs::read(&out).unwrap(), b"kept");
}

#[test]
fn a_command_writes_where_it_is_told_and_takes_all_of_its_input() {
    use std::os::unix::fs::{FileTypeExt, PermissionsExt, symlink};
    let world = World::with_demo();
    let sidecar = world.start();
    let socket = sidecar.socket.to_str().unwrap();
    let at = |name: &str| world.path(name).to_str().unwrap().to_owned();
    let encrypt = |input: &str, out: &str| {
        world.succeed(&[
            "encrypt",
            "--keyring",
            "demo",
            "--socket",
            socket,
            "--out",
            out,
            input,
        ])
    };
    fs::write(at("plain"), text(3 * MIB)).unwrap();
    // Another file's place, with its mode; a link's end.
    fs::write(at("private"), "").unwrap();
    fs::set_permissions(at("private"), fs::Permissions::from_mode(0o600)).unwrap();
    symlink(at("private"), at("link")).unwrap();
    encrypt(&at("plain"), &at("link"));
    assert!(fs::symlink_metadata(at("link")).unwrap().is_symlink());
    let private = fs::metadata(at("private")).unwrap();
    assert_eq!(
        (
            private.permissions().mode() & 0o777,
            private.len() > 3 << 20
        ),
        (0o600, true)
    );
    // A pipe stays one.
    assert!(
        Command::new("mkfifo")
            .arg(at("pipe"))
            .status()
            .unwrap()
            .success()
    );
    let mut reader = Command::new("cat")
        .arg(at("pipe"))
        .stdout(File::create(at("came")).unwrap())
        .spawn()
        .unwrap();
    encrypt(&at("plain"), &at("pipe"));
    reader.wait().unwrap();
    let came = fs::read(at("came")).unwrap();
    assert!(came[0] == STREAM && fs::metadata(at("pipe")).unwrap().file_type().is_fifo());
    // A file that says that it is empty.
    encrypt("/proc/self/maps", &at("maps.sk"));
    let opened = world.succeed(&[
        "decrypt",
        "--keyring",
        "demo",
        "--socket",
        socket,
        &at("maps.sk"),
    ]);
    assert!(opened.contains("sidekey"), "{opened}");
}

#[test]
fn a_command_that_is_ended_takes_back_what_it_wrote() {
    let world = World::with_demo();
    let sidecar = world.start();
    let socket = sidecar.socket.to_str().unwrap();
    let out = world.path("out");
    let before = fs::read_dir(out.parent().unwrap()).unwrap().count();
    let mut child = Command::new(binary())
        .args([
            "encrypt",
            "--keyring",
            "demo",
            "--socket",
            socket,
            "--out",
            out.to_str().unwrap(),
        ])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    // Enough that it writes, and no end.
    let mut stdin = child.stdin.take().unwrap();
    std::io::Write::write_all(&mut stdin, &text(3 * MIB)).unwrap();
    wait("a part", || {
        fs::read_dir(out.parent().unwrap()).unwrap().count() > before
    });
    assert!(
        Command::new("kill")
            .args(["-s", "TERM", &child.id().to_string()])
            .status()
            .unwrap()
            .success()
    );
    assert_eq!(child.wait().unwrap().code(), Some(143));
    assert_eq!(
        fs::read_dir(out.parent().unwrap()).unwrap().count(),
        before,
        "no part is left"
    );
}

#[tokio::test]
async fn http_1_0_gets_no_answer_whose_end_it_could_not_tell() {
    let world = World::with_demo();
    let sidecar = world.start();
    let ask = |head: &str| {
        use std::io::{Read, Write};
        let mut stream = std::os::unix::net::UnixStream::connect(&sidecar.socket).unwrap();
        let request = format!(
            "POST /v1/keyrings/demo/encrypt HTTP/1.0\r\nContent-Length: 6\r\nContent-Type: {head}\r\n\r\n\0\0\0\0\u{1}x"
        );
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        String::from_utf8_lossy(&answer).into_owned()
    };
    assert!(ask("application/octet-stream").starts_with("HTTP/1.0 200"));
    let batch = ask("application/vnd.sidekey.batch");
    assert!(
        batch.starts_with("HTTP/1.0 400") && batch.contains("HTTP/1.1"),
        "{batch}"
    );
    let metrics = sidecar.ops("/metrics").1;
    assert!(
        !metrics.contains("abandoned"),
        "what was answered with a problem is counted once"
    );
}

#[tokio::test]
async fn a_body_that_never_comes_is_given_up() {
    let world = World::with_demo();
    let sidecar = world.start_with("one", "[timeouts]\nidle = \"500ms\"\n", &["demo"]);
    let mut clients = Vec::new();
    for content_type in [OCTETS, ("content-type", "application/vnd.sidekey.batch")] {
        let (sender, body) = channel();
        let mut client = sidecar.client().await;
        let answer = client
            .open(
                Method::POST,
                "/v1/keyrings/demo/encrypt",
                &[content_type],
                body,
            )
            .await
            .unwrap();
        assert_eq!(problem(answer).await, "request_timeout");
        clients.push((client, sender));
    }
}

#[test]
fn text_forms_over_a_mebibyte_are_read_back_from_files_and_pipes() {
    let world = World::with_demo();
    let sidecar = world.start();
    let (plain, sealed) = (world.path("plain"), world.path("sealed"));
    let run = |operation: &str, input: &std::path::Path, by: &str, more: &[&str]| {
        let mut command = Command::new(binary());
        command
            .args([
                operation,
                "--keyring",
                "demo",
                "--socket",
                sidecar.socket.to_str().unwrap(),
            ])
            .args(more);
        match by {
            "argument" => command.arg(input),
            "redirection" => command.stdin(File::open(input).unwrap()),
            _ => command.stdin(
                Command::new("cat")
                    .arg(input)
                    .stdout(Stdio::piped())
                    .spawn()
                    .unwrap()
                    .stdout
                    .unwrap(),
            ),
        };
        let output = command.output().unwrap();
        assert!(
            output.status.success(),
            "{operation} by {by}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        output.stdout
    };
    // A message whose text is longer than what is sent as a whole, one that is so itself, and a stream.
    for length in [900 << 10, MIB, MIB + 1] {
        fs::write(&plain, text(length)).unwrap();
        fs::write(&sealed, run("encrypt", &plain, "argument", &["--text"])).unwrap();
        for by in ["argument", "redirection", "pipe"] {
            assert!(
                run("decrypt", &sealed, by, &[]) == text(length),
                "{length} by {by}"
            );
            let again = world.path("again");
            fs::write(&again, run("rewrap", &sealed, by, &["--text"])).unwrap();
            assert!(fs::read(&again).unwrap().starts_with(b"sk1."));
            assert!(
                run("decrypt", &again, by, &[]) == text(length),
                "{length} rewrapped by {by}"
            );
        }
    }
}

#[test]
fn a_long_stream_takes_no_more_memory_than_a_short_one() {
    let world = World::with_demo();
    let sidecar = world.start();
    let socket = sidecar.socket.to_str().unwrap();
    // Zeros that take no room on the disk.
    let (plain, sealed) = (world.path("plain"), world.path("sealed"));
    let length = 256 << 20;
    File::create(&plain).unwrap().set_len(length).unwrap();
    let memory = |field: &str| {
        let status = fs::read_to_string(format!("/proc/{}/status", sidecar.child.id())).unwrap();
        let line = status
            .lines()
            .find(|line| line.starts_with(field))
            .unwrap()
            .to_owned();
        line.split_whitespace()
            .nth(1)
            .unwrap()
            .parse::<u64>()
            .unwrap()
    };
    let run = |operation: &str, from: &std::path::Path, to: &std::path::Path| {
        world.succeed(&[
            operation,
            "--keyring",
            "demo",
            "--socket",
            socket,
            "--out",
            to.to_str().unwrap(),
            from.to_str().unwrap(),
        ]);
    };
    // What the first request of all allocates is no stream's.
    let short = world.path("short");
    fs::write(&short, text(2 * MIB)).unwrap();
    run("encrypt", &short, &sealed);
    let idle = memory("VmRSS");
    run("encrypt", &plain, &sealed);
    run("rewrap", &sealed, &world.path("again"));
    run("decrypt", &world.path("again"), &world.path("opened"));
    assert_eq!(fs::metadata(world.path("opened")).unwrap().len(), length);
    let peak = memory("VmHWM");
    assert!(
        peak <= idle + (8 << 10),
        "{idle} KiB before, at most {peak} KiB"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_stands_still_ends_and_gives_its_memory_back() {
    let world = World::with_demo();
    let config = "[timeouts]\nheader = \"100ms\"\nbody = \"100ms\"\nidle = \"400ms\"";
    let sidecar = world.start_with("one", config, &["demo"]);
    // Longer than a message's body may take, but it goes on.
    let (sender, body) = channel();
    let slow = tokio::spawn(async move {
        for _ in 0..10 {
            sender.send(Ok(Bytes::from(text(64 << 10)))).await.unwrap();
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    });
    let mut client = sidecar.client().await;
    let answer = post(&mut client, "encrypt", body).await;
    assert_eq!(bytes(answer).await.len(), PREFIX + 10 * CHUNK);
    slow.await.unwrap();
    // One whose sender says no more.
    let (sender, body) = channel();
    let mut client = sidecar.client().await;
    let feed = async { sender.send(Ok(Bytes::from(text(128 << 10)))).await.unwrap() };
    let (answer, ()) = tokio::join!(post(&mut client, "encrypt", body), feed);
    broken(answer).await;
    // One whose answer nobody takes: the body goes on until the buffers between are full.
    let (sender, body) = channel();
    let mut client = sidecar.client().await;
    let feed =
        tokio::spawn(
            async move { while sender.send(Ok(Bytes::from(text(64 << 10)))).await.is_ok() {} },
        );
    let answer = post(&mut client, "encrypt", body).await;
    feed.await.unwrap();
    broken(answer).await;
    wait("a hint for who has to find the cause", || {
        sidecar
            .log()
            .matches("read the response while it sends")
            .count()
            == 2
    });
    let metrics = || sidecar.ops("/metrics").1;
    for (code, count) in [("abandoned", 2), ("ok", 1)] {
        let line = format!(
            r#"sidekey_requests_total{{keyring="demo",operation="encrypt",code="{code}"}} {count}"#
        );
        wait("the count", || metrics().contains(&line));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_that_stand_still_make_room_for_others() {
    let world = World::with_demo();
    let limits = "body = \"64KiB\"\njson_body = \"64KiB\"\nbody_memory = \"400KiB\"";
    let sidecar = world.start_with(
        "one",
        &format!("[limits]\n{limits}\n[timeouts]\nbody = \"4s\""),
        &["demo"],
    );
    // Two hold all of the memory: one gets nothing more to work on, the answer to the other isn't taken.
    let (quiet_sender, body) = channel();
    let mut quiet_client = sidecar.client().await;
    let feed = async {
        quiet_sender
            .send(Ok(Bytes::from(text(128 << 10))))
            .await
            .unwrap()
    };
    let (quiet, ()) = tokio::join!(post(&mut quiet_client, "encrypt", body), feed);
    let (sender, body) = channel();
    let mut full_client = sidecar.client().await;
    let feed =
        tokio::spawn(
            async move { while sender.send(Ok(Bytes::from(text(64 << 10)))).await.is_ok() {} },
        );
    let full = post(&mut full_client, "encrypt", body).await;

    let third = async {
        loop {
            let answer = post(&mut sidecar.client().await, "encrypt", whole(text(MIB))).await;
            if answer.status() == StatusCode::OK {
                break bytes(answer).await.len();
            }
            assert_eq!(problem(answer).await, "overloaded");
        }
    };
    assert_eq!(
        tokio::time::timeout(crate::support::harness::PATIENCE, third)
            .await
            .expect("room"),
        PREFIX + 16 * CHUNK
    );
    // Whoever had to go knows it.
    feed.abort();
    drop(quiet_sender);
    let (quiet, full) = (
        quiet.into_body().collect().await,
        full.into_body().collect().await,
    );
    assert!(quiet.is_err() || full.is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_in_flight_is_finished_before_the_sidecar_ends() {
    let world = World::with_demo();
    let mut sidecar = world.start();
    let (sender, body) = channel();
    let mut client = sidecar.client().await;
    let first = async { sender.send(Ok(Bytes::from(text(128 << 10)))).await.unwrap() };
    let (answer, ()) = tokio::join!(post(&mut client, "encrypt", body), first);
    sidecar.signal("TERM");
    wait("draining", || sidecar.log().contains("stopping"));
    sender.send(Ok(Bytes::from(text(64 << 10)))).await.unwrap();
    drop(sender);
    assert_eq!(bytes(answer).await.len(), PREFIX + 3 * CHUNK);
    assert!(sidecar.ended().success());
}
