//! The chart `helm/sidekey`: what it renders for many values is what an API server accepts, and
//! what the binaries read; what it lacks and what is wrong is said in words.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use serde_json::Value;
use sidekey::config::{Credential, HubDatabase, HubSettings, parse_hub, parse_signer};

use crate::support::{
    certificates::issue,
    harness::{binary, wait},
    kubernetes::Kubernetes,
    servers::installed,
};

const NAMESPACE: &str = "keys";

/// Values that make the chart complete, without a file.
const COMPLETE: [&str; 3] = [
    "image.repository=registry.example/sidekey",
    "hub.tls.secretName=sidekey-hub-tls",
    "hub.sidecarIdentities[0]={\"workloads\":[\"orders\"],\"tokenSecret\":{\"name\":\"orders-hub\"}}",
];

fn chart() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("helm/sidekey")
}

fn helm(command: &[&str], arguments: &[&str]) -> Output {
    let folder = tempfile::tempdir().unwrap();
    Command::new(installed("bin/helm"))
        .args(command)
        .arg(chart())
        .args(["--namespace", NAMESPACE, "--kube-version", "1.34.4"])
        .args(arguments)
        .env("HOME", folder.path())
        .output()
        .unwrap()
}

fn template(arguments: &[&str]) -> Output {
    helm(&["template", "sidekey"], arguments)
}

/// The files of values in `helm/sidekey/ci`.
fn value_sets() -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = fs::read_dir(chart().join("ci"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    files
}

/// The YAML documents that the chart renders.
fn rendered(arguments: &[&str]) -> Vec<String> {
    let output = template(arguments);
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    text.split("\n---\n")
        .map(|document| format!("{}\n", document.trim_end()))
        .filter(|document| document.contains("\nkind: "))
        .collect()
}

fn with_values(file: &Path) -> Vec<String> {
    rendered(&["--values", file.to_str().unwrap()])
}

/// Renders with [`COMPLETE`] and more values.
fn complete_with(values: &[&str]) -> Output {
    let arguments: Vec<&str> = COMPLETE
        .iter()
        .chain(values)
        .flat_map(|value| {
            let is_json = value.contains("=[{") || value.contains("={") || value.ends_with("=null");
            [if is_json { "--set-json" } else { "--set" }, value]
        })
        .collect();
    template(&arguments)
}

/// The value of a line `key: value` with this indentation.
fn line<'d>(document: &'d str, key: &str) -> &'d str {
    let mut lines = document.lines();
    lines.find_map(|line| line.strip_prefix(key)).unwrap()
}

/// Where the API server keeps an object.
fn path_of(document: &str) -> String {
    let (kind, name) = (line(document, "kind: "), line(document, "  name: "));
    let (group, plural) = match kind {
        "ConfigMap" => ("api/v1", "configmaps"),
        "PersistentVolumeClaim" => ("api/v1", "persistentvolumeclaims"),
        "Pod" => ("api/v1", "pods"),
        "Service" => ("api/v1", "services"),
        "ServiceAccount" => ("api/v1", "serviceaccounts"),
        "Deployment" => ("apis/apps/v1", "deployments"),
        "StatefulSet" => ("apis/apps/v1", "statefulsets"),
        "NetworkPolicy" => ("apis/networking.k8s.io/v1", "networkpolicies"),
        "PodDisruptionBudget" => ("apis/policy/v1", "poddisruptionbudgets"),
        "PodMonitor" => ("apis/monitoring.coreos.com/v1", "podmonitors"),
        "PrometheusRule" => ("apis/monitoring.coreos.com/v1", "prometheusrules"),
        "ServiceMonitor" => ("apis/monitoring.coreos.com/v1", "servicemonitors"),
        // Secrets, roles and their bindings among them.
        other => panic!("the chart makes no {other}"),
    };
    let namespace = line(document, "  namespace: ");
    format!("/{group}/namespaces/{namespace}/{plural}/{name}")
}

/// An API server that knows the resources of the Prometheus operator.
fn api_server(folder: &Path) -> Kubernetes {
    issue(folder, &[("api", "subjectAltName=IP:127.0.0.1")]);
    let kubernetes = Kubernetes::start(folder);
    kubernetes.make_restricted_namespace(NAMESPACE);
    let definitions: Vec<(String, String)> = fs::read_dir(installed("prometheus-operator"))
        .unwrap()
        .map(|entry| {
            let text = fs::read_to_string(entry.unwrap().path()).unwrap();
            let path = format!(
                "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{}",
                line(&text, "  name: ")
            );
            (path, text)
        })
        .collect();
    assert_eq!(definitions.len(), 3);
    for applied in kubernetes.apply(&definitions) {
        assert_eq!(applied.status, 201, "{}", applied.object);
    }
    let probe: Vec<(String, String)> = ["PodMonitor", "PrometheusRule", "ServiceMonitor"]
        .map(|kind| {
            let text = format!(
                "apiVersion: monitoring.coreos.com/v1\nkind: {kind}\nmetadata:\n  name: probe\n  \
                 namespace: {NAMESPACE}\nspec: {{selector: {{}}, endpoints: [], \
                 podMetricsEndpoints: [], groups: []}}\n"
            );
            (path_of(&text), text)
        })
        .into();
    // A definition is served a moment after it was made; until then there is no such path.
    wait("the operator's resources", || {
        kubernetes.dry_run(&probe).iter().all(|it| it.status != 404)
    });
    kubernetes
}

#[test]
fn an_api_server_accepts_every_object_of_every_value_set() {
    let folder = tempfile::tempdir().unwrap();
    let kubernetes = api_server(folder.path());
    let mut kinds = BTreeSet::new();
    for file in value_sets() {
        let lint = helm(&["lint", "--strict"], &["--values", file.to_str().unwrap()]);
        assert!(lint.status.success(), "{file:?}: {lint:?}");
        let documents: Vec<(String, String)> = with_values(&file)
            .into_iter()
            .map(|document| (path_of(&document), document))
            .collect();
        let paths: BTreeSet<&String> = documents.iter().map(|(path, _)| path).collect();
        assert_eq!(paths.len(), documents.len(), "{file:?}: names are unique");
        let mut objects = Vec::new();
        for ((path, document), applied) in documents.iter().zip(kubernetes.dry_run(&documents)) {
            let about = format!("{file:?}: {path}: {}\n{document}", applied.object);
            assert!([200, 201].contains(&applied.status), "{about}");
            assert!(
                applied.warnings.is_empty(),
                "{:?}: {about}",
                applied.warnings
            );
            kinds.insert(applied.object["kind"].as_str().unwrap().to_owned());
            objects.push(applied.object);
        }
        check(&file, &objects);
    }
    assert_eq!(kinds.len(), 12, "every kind occurs: {kinds:?}");
}

/// The template of a workload's pods, or a pod.
fn pod(object: &Value) -> Option<&Value> {
    match object["kind"].as_str().unwrap() {
        "Pod" => Some(object),
        "Deployment" | "StatefulSet" => Some(&object["spec"]["template"]),
        _ => None,
    }
}

fn check(file: &Path, objects: &[Value]) {
    for object in objects {
        let about = format!("{file:?}: {object}");
        assert_eq!(
            object["metadata"]["labels"]["app.kubernetes.io/instance"],
            "sidekey"
        );
        assert!(
            !about.contains("PRIVATE KEY") && !about.contains("BEGIN CERT"),
            "{about}"
        );
        if object["kind"] == "ServiceAccount" {
            assert_eq!(object["automountServiceAccountToken"], false, "{about}");
        }
        if let Some(pod) = pod(object) {
            check_pod(pod, &about);
        }
        check_selector(object, objects, &about);
        check_config(object, objects, &about);
    }
}

fn check_pod(pod: &Value, about: &str) {
    let spec = &pod["spec"];
    assert_eq!(spec["automountServiceAccountToken"], false, "{about}");
    assert_eq!(
        spec["securityContext"]["seccompProfile"]["type"],
        "RuntimeDefault"
    );
    assert_eq!(spec["securityContext"]["runAsNonRoot"], true, "{about}");
    for container in spec["containers"].as_array().unwrap() {
        let security = &container["securityContext"];
        assert_eq!(security["readOnlyRootFilesystem"], true, "{about}");
        assert_eq!(security["allowPrivilegeEscalation"], false, "{about}");
        assert_eq!(security["capabilities"]["drop"][0], "ALL", "{about}");
        assert!(
            container["resources"]["limits"]["memory"].is_string(),
            "{about}"
        );
        assert!(container["resources"]["limits"]["cpu"].is_null(), "{about}");
    }
    for volume in spec["volumes"].as_array().unwrap() {
        for source in ["secret", "projected"] {
            // What every user may read, the binaries refuse.
            let mode = volume[source]["defaultMode"].as_u64();
            assert!(mode.is_none_or(|mode| mode == 0o440), "{about}");
        }
    }
}

/// What selects pods selects those of a workload in the same release.
fn check_selector(object: &Value, objects: &[Value], about: &str) {
    let selector = match object["kind"].as_str().unwrap() {
        "Service" => &object["spec"]["selector"],
        "NetworkPolicy" => &object["spec"]["podSelector"]["matchLabels"],
        "PodDisruptionBudget" => &object["spec"]["selector"]["matchLabels"],
        _ => return,
    };
    let selector = selector.as_object().unwrap();
    let selects = |pod: &Value| {
        let labels = &pod["metadata"]["labels"];
        selector.iter().all(|(name, value)| labels[name] == *value)
    };
    let workloads = objects.iter().filter(|it| it["kind"] != "Pod");
    assert_eq!(
        workloads.filter_map(pod).filter(|it| selects(it)).count(),
        1,
        "{about}"
    );
}

/// The binaries read the files of ConfigMaps.
fn check_config(object: &Value, objects: &[Value], about: &str) {
    if object["kind"] != "ConfigMap" {
        return;
    }
    let data = object["data"].as_object().unwrap();
    let (name, text) = data.iter().next().unwrap();
    let text = text.as_str().unwrap();
    let path = Path::new("/config").join(name);
    match object["metadata"]["labels"]["app.kubernetes.io/component"]
        .as_str()
        .unwrap()
    {
        "hub" => {
            let settings =
                parse_hub(&path, text).unwrap_or_else(|error| panic!("{about}\n{error}"));
            check_hub_files(&settings, hub_pod(objects), about);
        }
        "signer" => {
            parse_signer(&path, text).unwrap_or_else(|error| panic!("{about}\n{error}"));
        }
        "sidecar" => assert_valid_for_a_sidecar(text),
        "dashboards" => {
            let board: Value = serde_json::from_str(text).unwrap();
            assert!(board["uid"].is_string(), "{about}");
        }
        other => panic!("{other}: {about}"),
    }
}

fn assert_valid_for_a_sidecar(table: &str) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("sidekey.toml");
    let rest = "workload = \"orders\"\n[listen]\nsocket = \"sidekey.sock\"\n\
                [[keyring]]\nname = \"orders\"\nlocation = \"orders.json\"\n\
                keks = [\"aws-kms:*\"]\n";
    fs::write(&file, format!("{table}{rest}")).unwrap();
    let output = Command::new(binary())
        .args(["check", "--config-only", "--config"])
        .arg(&file)
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}\n{table}");
}

fn hub_pod(objects: &[Value]) -> &Value {
    let is_hub = |pod: &&Value| pod["metadata"]["labels"]["app.kubernetes.io/component"] == "hub";
    objects.iter().filter_map(pod).find(is_hub).unwrap()
}

/// Every file that the hub's config names is mounted, and the probes ask the port that it uses.
fn check_hub_files(settings: &HubSettings, pod: &Value, about: &str) {
    let tls = settings.tls.as_ref().unwrap();
    let mut files = vec![&tls.certificate, &tls.key];
    files.extend(tls.clients.as_ref().map(|clients| &clients.ca));
    match &settings.database {
        HubDatabase::Sqlite(file) => {
            assert!(
                mounted(pod).iter().any(|(at, _)| file.starts_with(at)),
                "{about}"
            );
        }
        HubDatabase::Postgres { password_file, .. } => files.extend(password_file),
    }
    let identities = settings.identities.iter().map(|it| &it.credential);
    let operators = settings.operators.iter().map(|it| &it.credential);
    files.extend(
        identities
            .chain(operators)
            .filter_map(|credential| match credential {
                Credential::Token(file) => Some(file),
                Credential::Certificate(_) => None,
            }),
    );
    for file in files {
        let is_there =
            |(at, paths): &(PathBuf, Vec<String>)| paths.iter().any(|path| at.join(path) == *file);
        assert!(
            mounted(pod).iter().any(is_there),
            "{}: {about}",
            file.display()
        );
    }
    let container = &pod["spec"]["containers"][0];
    assert_eq!(
        container["ports"][0]["containerPort"],
        settings.listen.port()
    );
    for probe in ["startupProbe", "readinessProbe", "livenessProbe"] {
        let get = &container[probe]["httpGet"];
        assert_eq!(get["path"], "/healthz", "{about}");
        assert_eq!(get["scheme"], "HTTPS", "{about}");
        assert_eq!(get["port"], container["ports"][0]["name"], "{about}");
    }
    let grace = pod["spec"]["terminationGracePeriodSeconds"]
        .as_u64()
        .unwrap();
    assert!(grace > settings.drain.as_secs(), "{about}");
}

/// Where the first container has volumes, and the files in those from Secrets.
fn mounted(pod: &Value) -> Vec<(PathBuf, Vec<String>)> {
    let paths = |source: &Value| -> Vec<String> {
        let items = source["items"].as_array().into_iter().flatten();
        items
            .map(|item| item["path"].as_str().unwrap().to_owned())
            .collect()
    };
    let spec = &pod["spec"];
    let mounts = spec["containers"][0]["volumeMounts"].as_array().unwrap();
    mounts
        .iter()
        .map(|mount| {
            let volumes = spec["volumes"].as_array().unwrap();
            let volume = volumes
                .iter()
                .find(|it| it["name"] == mount["name"])
                .unwrap();
            let projected = volume["projected"]["sources"]
                .as_array()
                .into_iter()
                .flatten();
            let files = projected
                .flat_map(|source| paths(&source["secret"]))
                .chain(paths(&volume["secret"]))
                .collect();
            (PathBuf::from(mount["mountPath"].as_str().unwrap()), files)
        })
        .collect()
}

#[test]
fn what_is_missing_or_contradicts_is_said_at_once_with_what_to_do() {
    let output = template(&[]);
    assert!(!output.status.success());
    let said = String::from_utf8(output.stderr).unwrap();
    for text in [
        "- image.repository is empty: build the image with",
        "- hub.tls.secretName is empty: create a Secret with a certificate for the DNS name \
         sidekey-hub.keys.svc",
        "kubectl create secret tls sidekey-hub-tls -n keys",
        "- hub.sidecarIdentities is empty: say who may report",
        "kubectl create secret generic orders-hub -n keys --from-file=sha256=orders.sha256",
    ] {
        assert!(said.contains(text), "{text}: {said}");
    }
    let cases: &[(&[&str], &str)] = &[
        (
            &["hub.replicas=2"],
            "hub.replicas is more than 1, which SQLite can't serve",
        ),
        (
            &["hub.database.passwordSecret.name=db"],
            "passwordSecret.name has no effect without hub.database.url",
        ),
        (
            &["hub.operators=[{\"name\":\"sam\",\"role\":\"operator\"}]"],
            "hub.operators[0] needs either tokenSecret or certificate",
        ),
        (
            &["hub.operators=[{\"name\":\"sam\",\"role\":\"operator\",\"certificate\":\"sam\"}]"],
            "hub.operators[0].certificate has no effect without hub.tls.clientCa.secretName",
        ),
        (
            &["hub.tls.clientNames[0]=orders.example"],
            "hub.tls.clientNames has no effect without hub.tls.clientCa.secretName",
        ),
        (
            &["signer.enabled=true"],
            "signer.hub.tokenSecret.name is empty: list the signer in hub.operators",
        ),
        (&["signer.enabled=true"], "signer.config has no [[keyring]]"),
        (
            &[
                "signer.enabled=true",
                "signer.config=[hub]\nurl = \"https://hub\"",
            ],
            "signer.config has [hub] or state_dir, which the chart writes",
        ),
        (
            &["hub.enabled=false"],
            "sidecar.hub.url is empty, and this release has no hub",
        ),
        (
            &["sidecar.hub.tokenFile="],
            "sidecar.hub has neither tokenFile nor certificateFile",
        ),
        (
            &["sidecar.hub.certificateFile=/tls.crt"],
            "sidecar.hub.tokenFile and sidecar.hub.certificateFile exclude each other",
        ),
        (
            &[
                "sidecar.hub.tokenFile=",
                "sidecar.hub.certificateFile=/tls.crt",
            ],
            "sidecar.hub.certificateFile and sidecar.hub.keyFile go together",
        ),
        (
            &["metrics.serviceMonitor.enabled=true"],
            "metrics.serviceMonitor.tokenSecret.name is empty: list prometheus in hub.operators",
        ),
        (
            &["metrics.prometheusRule.disabled[0]=SidekeyReady"],
            "metrics.prometheusRule.disabled: there is no alert SidekeyReady",
        ),
    ];
    for (values, text) in cases {
        assert_refused(values, text);
    }
}

#[test]
fn the_schema_refuses_what_is_misspelt_or_out_of_range_and_names_it() {
    let cases: &[(&[&str], &str)] = &[
        (
            &["hub.replica=2"],
            "additional properties 'replica' not allowed",
        ),
        (
            &["hubs.enabled=true"],
            "additional properties 'hubs' not allowed",
        ),
        (
            &["hub.tls.key=secret"],
            "additional properties 'key' not allowed",
        ),
        (&["hub.replicas=0"], "minimum: got 0, want 1"),
        (&["hub.replicas=one"], "got string, want integer"),
        (
            &["hub.lostAfter=30"],
            "at '/hub/lostAfter': got number, want string",
        ),
        (
            &["hub.lostAfter=month"],
            "at '/hub/lostAfter': 'month' does not match pattern",
        ),
        (&["hub.tls.secretName=Hub_TLS"], "at '/hub/tls/secretName'"),
        (&["hub.tls.minVersion=1.1"], "at '/hub/tls/minVersion'"),
        (
            &["hub.database.url=mysql://db/hub"],
            "at '/hub/database/url'",
        ),
        (
            &["hub.database.url=postgres://hub:secret@db/hub"],
            "at '/hub/database/url'",
        ),
        (&["hub.limits.report=1MB"], "at '/hub/limits/report'"),
        (&["hub.persistence.size=big"], "at '/hub/persistence/size'"),
        (
            &["hub.persistence.accessMode=ReadWriteMany"],
            "at '/hub/persistence/accessMode'",
        ),
        (
            &["hub.podDisruptionBudget.maxUnavailable=0"],
            "/hub/podDisruptionBudget/maxUnavailable",
        ),
        (&["hub.service.port=70000"], "at '/hub/service/port'"),
        (
            &["hub.operators=[{\"name\":\"sam\",\"role\":\"root\"}]"],
            "at '/hub/operators/0/role'",
        ),
        (
            &["hub.operators=[{\"name\":\"sam\",\"token\":\"x\"}]"],
            "'token' not allowed",
        ),
        (
            &["hub.workloads=[{\"name\":\"orders\"}]"],
            "missing property 'keyrings'",
        ),
        (&["image.digest=sha256:12"], "at '/image/digest'"),
        (&["image.pullPolicy=Sometimes"], "at '/image/pullPolicy'"),
        (
            &["runAs.user=0"],
            "at '/runAs/user': minimum: got 0, want 1",
        ),
        (&["sidecar.hub.url=https://hub"], "at '/sidecar/hub/url'"),
        (&["signer.hub.url=http://hub"], "at '/signer/hub/url'"),
        (
            &["signer.projectedTokens=[{\"path\":\"../x\",\"audience\":\"a\"}]"],
            "/0/path'",
        ),
        (
            &["metrics.podMonitor.scheme=ftp"],
            "at '/metrics/podMonitor/scheme'",
        ),
    ];
    for (values, text) in cases {
        assert_refused(values, text);
    }
}

fn assert_refused(values: &[&str], text: &str) {
    let output = complete_with(values);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "{values:?} was accepted");
    assert!(said.contains(text), "{values:?}: {text}: {said}");
}

fn accepted(values: &[&str]) -> String {
    let output = complete_with(values);
    assert!(output.status.success(), "{values:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn pods_start_again_when_their_config_changes_and_only_then() {
    let checksum = |values: &[&str]| {
        let text = accepted(values);
        text.split("checksum/config: ").nth(1).unwrap()[..64].to_owned()
    };
    let first = checksum(&[]);
    assert_eq!(
        first,
        checksum(&["hub.service.type=LoadBalancer", "test.image=curl:1"])
    );
    assert_ne!(first, checksum(&["hub.reportSeconds=31"]));
    assert_ne!(first, checksum(&["hub.log.level=debug"]));
}

#[test]
fn a_digest_counts_in_place_of_a_tag() {
    let digest = format!("image.digest=sha256:{}", "ab".repeat(32));
    let text = accepted(&[&digest, "image.tag=latest"]);
    let image = format!(
        "image: registry.example/sidekey@sha256:{}\n",
        "ab".repeat(32)
    );
    assert!(text.contains(&image), "{text}");
    assert!(accepted(&["image.tag=1.2.3"]).contains("image: registry.example/sidekey:1.2.3\n"));
}

#[test]
fn a_hub_on_sqlite_connects_nowhere_and_one_on_postgresql_only_there() {
    let policy = |values: &[&str]| {
        let text = accepted(values);
        let documents = text.split("\n---\n");
        let mut policies = documents.filter(|it| it.contains("\nkind: NetworkPolicy"));
        policies.next().unwrap().to_owned()
    };
    assert!(policy(&[]).contains("egress: []"));
    for (url, port) in [
        ("postgres://hub@db.example:6432/hub", 6432),
        ("postgres://hub@db.example/hub?port=1", 5432),
        ("postgres://hub@[fd00::1]:7432/hub", 7432),
    ] {
        let policy = policy(&[&format!("hub.database.url={url}")]);
        assert!(
            policy.contains(&format!("port: {port}, protocol: TCP")),
            "{url}: {policy}"
        );
        assert!(policy.contains("port: 53, protocol: UDP"), "{policy}");
    }
}

#[test]
fn openshift_chooses_the_user() {
    let text = accepted(&["runAs.user=null", "runAs.group=null"]);
    assert!(text.contains("runAsNonRoot: true"));
    for field in ["runAsUser", "runAsGroup", "fsGroup:"] {
        assert!(!text.contains(field), "{field}: {text}");
    }
}

#[test]
fn the_readme_lists_every_value() {
    let output = Command::new(installed("bin/helm-docs"))
        .args([
            "--dry-run",
            "--log-level",
            "error",
            "--sort-values-order",
            "file",
        ])
        .args(["--document-dependency-values=false", "--chart-search-root"])
        .arg(chart())
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let made = String::from_utf8(output.stdout).unwrap();
    let kept = fs::read_to_string(chart().join("README.md")).unwrap();
    let note = "run: helm-docs --sort-values-order file --chart-search-root helm/sidekey";
    assert_eq!(made.trim(), kept.trim(), "{note}");
    // Each has a description.
    let undescribed = kept.lines().filter(|line| line.ends_with("|  |"));
    assert_eq!(undescribed.collect::<Vec<_>>(), Vec::<&str>::new());
}
