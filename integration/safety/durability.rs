//! Manifest writes are atomic, and none is lost.

use std::{
    fs,
    os::unix::process::ExitStatusExt,
    path::Path,
    process::{Child, Command, Stdio},
};

use crate::support::harness::{World, binary};

/// Kills its process at the Nth call that changes or syncs a file; half of a long write gets
/// through.
const SHIM: &str = r#"
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

static int calls;

static int due(void) {
    const char *at = getenv("KILL_AT");
    return at && __atomic_add_fetch(&calls, 1, __ATOMIC_SEQ_CST) == atoi(at);
}

static void die(void) { kill(getpid(), SIGKILL); for (;;) pause(); }

#define REAL(name) __typeof__(name) *real = (__typeof__(name) *)dlsym(RTLD_NEXT, #name)

ssize_t write(int fd, const void *bytes, size_t length) {
    REAL(write);
    /* Short ones are the runtime's wake-ups. */
    if (length > 64 && due()) { real(fd, bytes, length / 2); die(); }
    return real(fd, bytes, length);
}
int open64(const char *path, int flags, ...) {
    REAL(open64);
    va_list rest; va_start(rest, flags); mode_t mode = va_arg(rest, mode_t); va_end(rest);
    if ((flags & O_CREAT) && due()) die();
    return real(path, flags, mode);
}
int fsync(int fd) { REAL(fsync); if (due()) die(); return real(fd); }
int fchmod(int fd, mode_t mode) { REAL(fchmod); if (due()) die(); return real(fd, mode); }
int flock(int fd, int what) { REAL(flock); if (due()) die(); return real(fd, what); }
int unlink(const char *path) { REAL(unlink); if (due()) die(); return real(path); }
int rename(const char *from, const char *to) {
    REAL(rename);
    if (due()) die();
    return real(from, to);
}
"#;

fn build_shim(world: &World) -> std::path::PathBuf {
    let (source, library) = (world.path("shim.c"), world.path("shim.so"));
    fs::write(&source, SHIM).unwrap();
    let compiled = Command::new("cc")
        .args(["-shared", "-fPIC", "-o"])
        .args([&library, &source])
        .arg("-ldl")
        .status()
        .unwrap();
    assert!(compiled.success());
    library
}

fn rotate(manifest: &Path) -> Command {
    let mut command = Command::new(binary());
    command
        .args(["keyring", "rotate"])
        .arg(manifest)
        .args(["--activate", "now"])
        .env("SIDEKEY_STATE_DIR", manifest.with_file_name("state"))
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command
}

#[test]
fn a_rotate_killed_at_any_write_step_leaves_a_valid_manifest() {
    let world = World::with_demo();
    let shim = build_shim(&world);
    let file = world.manifest("demo");
    let (mut killed, mut kept, mut written) = (0, 0, 0);
    for step in 1.. {
        let before = world.read_manifest("demo")["generation"].as_u64().unwrap();
        let status = rotate(&file)
            .env("LD_PRELOAD", &shim)
            .env("KILL_AT", step.to_string())
            .status()
            .unwrap();
        world.keyring("verify", "demo", &[]);
        let after = world.read_manifest("demo")["generation"].as_u64().unwrap();
        if status.success() {
            assert_eq!(after, before + 2);
            break;
        }
        assert_eq!(status.signal(), Some(9), "step {step}");
        killed += 1;
        match after - before {
            0 => kept += 1,
            1 | 2 => written += 1,
            more => panic!("{more} generations at once"),
        }
    }
    // Two generations, each: lock, create, write, mode, fsync, rename, fsync.
    assert!(killed >= 14, "only {killed} steps were reached");
    assert!(
        kept > 0 && written > 0,
        "kills fell before ({kept}) and after ({written}) a rename"
    );
    // A killed writer's leftovers don't block later writes.
    assert!(rotate(&file).status().unwrap().success());
    let leftovers = fs::read_dir(file.parent().unwrap())
        .unwrap()
        .filter(|entry| {
            entry
                .as_ref()
                .unwrap()
                .file_name()
                .to_string_lossy()
                .ends_with(".new")
        });
    assert_eq!(leftovers.count(), 0);
}

#[test]
fn concurrent_rotations_are_all_applied() {
    let world = World::with_demo();
    let file = world.manifest("demo");
    let children: Vec<Child> = (0..8).map(|_| rotate(&file).spawn().unwrap()).collect();
    for mut child in children {
        assert!(child.wait().unwrap().success());
    }
    world.keyring("verify", "demo", &[]);
    let manifest = world.read_manifest("demo");
    assert_eq!(manifest["generation"], 17);
    assert_eq!(manifest["versions"].as_array().unwrap().len(), 9);
    let mut activated: Vec<u64> = manifest["activations"]
        .as_array()
        .unwrap()
        .iter()
        .map(|activation| activation["version"].as_u64().unwrap())
        .collect();
    activated.sort_unstable();
    assert_eq!(activated, (1..=9).collect::<Vec<_>>());
}
