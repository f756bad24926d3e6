//! Certificates of an authority of our own, made by openssl.

use std::{fs, path::Path, process::Command};

pub fn openssl(folder: &Path, arguments: &[&str]) {
    let output = Command::new("openssl").args(arguments).current_dir(folder).output().unwrap();
    assert!(output.status.success(), "openssl {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Makes `ca.pem`, and `NAME.pem` with `NAME.key` for every name and X.509 extension.
pub fn issue(folder: &Path, certificates: &[(&str, &str)]) {
    let authority = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=test"];
    openssl(folder, &authority);
    for (name, extension) in certificates {
        let file = |suffix: &str| format!("{name}.{suffix}");
        fs::write(folder.join("extensions"), extension).unwrap();
        let (subject, key, request, certificate) = (format!("/CN={name}"), file("key"), file("csr"), file("pem"));
        openssl(folder, &["req", "-newkey", "rsa:2048", "-nodes", "-keyout", &key, "-out", &request, "-subj", &subject]);
        sign(folder, &request, &certificate, &[]);
    }
}

/// Makes `NAME.pem` anew, which ended yesterday.
pub fn expired(folder: &Path, name: &str, extension: &str) {
    fs::write(folder.join("extensions"), extension).unwrap();
    sign(folder, &format!("{name}.csr"), &format!("{name}.pem"), &["-days", "-1"]);
}

fn sign(folder: &Path, request: &str, certificate: &str, extra: &[&str]) {
    let sign = ["x509", "-req", "-in", request, "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-out", certificate];
    openssl(folder, &[&sign[..], &["-extfile", "extensions"], extra].concat());
}
