//! Certificates of a test authority, made by openssl.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

pub fn openssl(folder: &Path, arguments: &[&str]) {
    let output = Command::new("openssl")
        .args(arguments)
        .current_dir(folder)
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "openssl {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// Makes `ca.pem`, and `NAME.pem` with `NAME.key` for every name and X.509 extension.
pub fn issue(folder: &Path, certificates: &[(&str, &str)]) {
    let authority = [
        "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", "ca.key", "-out", "ca.pem",
        "-subj", "/CN=test",
    ];
    openssl(folder, &authority);
    for (name, extension) in certificates {
        let file = |suffix: &str| format!("{name}.{suffix}");
        fs::write(folder.join("extensions"), extension).unwrap();
        let (subject, key, request, certificate) =
            (format!("/CN={name}"), file("key"), file("csr"), file("pem"));
        openssl(
            folder,
            &[
                "req", "-newkey", "rsa:2048", "-nodes", "-keyout", &key, "-out", &request, "-subj",
                &subject,
            ],
        );
        sign(folder, &request, &certificate, &[]);
    }
}

/// An authority with keys that are quick to generate, and certificates with any validity.
pub struct Authority {
    folder: PathBuf,
}

impl Authority {
    pub fn new(folder: PathBuf) -> Self {
        fs::create_dir_all(&folder).unwrap();
        let settings = "[ca]\ndefault_ca = d\n[d]\nnew_certs_dir = .\ndatabase = index\n\
            serial = serial\ndefault_md = sha256\n\
            policy = p\nunique_subject = no\n[p]\ncommonName = supplied\n";
        for (name, text) in [("ca.cnf", settings), ("index", ""), ("serial", "01\n")] {
            fs::write(folder.join(name), text).unwrap();
        }
        let authority = Self { folder };
        let make = [
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-subj",
            "/CN=test authority",
        ];
        authority.openssl(&[&make[..], &["-keyout", "ca.key", "-out", "ca.pem"]].concat());
        authority
    }

    fn openssl(&self, arguments: &[&str]) {
        openssl(&self.folder, arguments);
    }

    pub fn ca(&self) -> PathBuf {
        self.folder.join("ca.pem")
    }

    /// Makes a currently valid certificate and its key, with an optional `subjectAltName`.
    pub fn issue(&self, name: &str, san: Option<&str>) -> (PathBuf, PathBuf) {
        self.issue_for(name, san, "20200101000000Z", "20490101000000Z")
    }

    /// Makes one with the given validity.
    pub fn issue_for(
        &self,
        name: &str,
        san: Option<&str>,
        from: &str,
        until: &str,
    ) -> (PathBuf, PathBuf) {
        let [key, request, certificate] =
            ["key", "csr", "pem"].map(|suffix| format!("{name}.{suffix}"));
        let san = san.map_or_else(String::new, |san| format!("subjectAltName={san}\n"));
        fs::write(
            self.folder.join("extensions"),
            format!("basicConstraints=CA:FALSE\n{san}"),
        )
        .unwrap();
        let subject = format!("/CN={name}");
        let make = [
            "req",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-keyout",
            &key,
            "-out",
            &request,
        ];
        self.openssl(&[&make[..], &["-subj", &subject]].concat());
        let sign = [
            "ca", "-batch", "-notext", "-config", "ca.cnf", "-cert", "ca.pem", "-keyfile",
            "ca.key", "-in", &request,
        ];
        let dates = [
            "-startdate",
            from,
            "-enddate",
            until,
            "-extfile",
            "extensions",
            "-out",
            &certificate,
        ];
        self.openssl(&[&sign[..], &dates].concat());
        (self.folder.join(certificate), self.folder.join(key))
    }
}

/// Signs `NAME.pem` with a validity that ended yesterday.
pub fn expired(folder: &Path, name: &str, extension: &str) {
    fs::write(folder.join("extensions"), extension).unwrap();
    sign(
        folder,
        &format!("{name}.csr"),
        &format!("{name}.pem"),
        &["-days", "-1"],
    );
}

fn sign(folder: &Path, request: &str, certificate: &str, extra: &[&str]) {
    let sign = [
        "x509",
        "-req",
        "-in",
        request,
        "-CA",
        "ca.pem",
        "-CAkey",
        "ca.key",
        "-CAcreateserial",
        "-out",
        certificate,
    ];
    openssl(
        folder,
        &[&sign[..], &["-extfile", "extensions"], extra].concat(),
    );
}
