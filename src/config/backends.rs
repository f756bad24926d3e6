//! How the outside systems are reached and logged in to: one section for each system.

use std::path::{Path, PathBuf};

use super::reader::{Read, Section, Value};

/// How the outside systems are reached. What isn't set comes from each system's usual environment variables.
#[derive(Debug, Clone, Default)]
pub struct Backends {
    /// Vault or OpenBao.
    pub vault: Vault,
    /// Amazon Web Services.
    pub aws: Aws,
    /// Azure Key Vault.
    pub azure: Azure,
    /// Hardware security modules.
    pub pkcs11: Pkcs11,
    /// KEKs in files of this machine.
    pub local: Local,
    /// Web servers that manifests are read from.
    pub web: Web,
    /// Hosts that may be talked to without TLS; loopback always may.
    pub plain_http: Vec<String>,
    /// Whether KEKs in local files are meant, and no warning is wanted.
    pub local_keks: bool,
}

/// Vault or OpenBao.
#[derive(Debug, Clone, Default)]
pub struct Vault {
    /// The server's URL; `VAULT_ADDR` if none.
    pub address: Option<String>,
    /// The namespace; `VAULT_NAMESPACE` if none.
    pub namespace: Option<String>,
    /// Certificates (PEM) of the authorities that are trusted instead of the system's; `VAULT_CACERT` if none.
    pub ca_file: Option<PathBuf>,
    /// Our certificate chain (PEM); `VAULT_CLIENT_CERT` if none.
    pub client_certificate: Option<PathBuf>,
    /// Its key (PEM); `VAULT_CLIENT_KEY` if none.
    pub client_key: Option<PathBuf>,
    /// How to log in.
    pub login: VaultLogin,
}

/// How to log in to Vault. Files are read anew for every login, because others rewrite them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum VaultLogin {
    /// With the token in `VAULT_TOKEN`, or else in `~/.vault-token`.
    #[default]
    Environment,
    /// With the token in a file.
    TokenFile(PathBuf),
    /// By AppRole.
    AppRole {
        /// Where the method is mounted.
        mount: String,
        /// The role's id.
        role_id: String,
        /// The file that holds the secret id.
        secret_id_file: PathBuf,
    },
    /// With a signed token in a file: the methods `kubernetes` and `jwt`.
    Jwt {
        /// Where the method is mounted.
        mount: String,
        /// The role.
        role: String,
        /// The file that holds the token.
        token_file: PathBuf,
    },
}

/// Amazon Web Services: the SDK's own chain finds credentials.
#[derive(Debug, Clone, Default)]
pub struct Aws {
    /// The region of keys and secrets that name none; the SDK's chain if none.
    pub region: Option<String>,
    /// The profile of the shared config files.
    pub profile: Option<String>,
    /// One URL for every service, instead of AWS' own.
    pub endpoint: Option<String>,
    /// Whether to use the endpoints validated by FIPS 140.
    pub fips: bool,
}

/// Azure Key Vault and Managed HSM.
#[derive(Debug, Clone)]
pub struct Azure {
    /// How to log in; as the environment suggests if none.
    pub login: Option<AzureLogin>,
    /// The tenant; `AZURE_TENANT_ID` if none.
    pub tenant_id: Option<String>,
    /// The application, or the user-assigned identity; `AZURE_CLIENT_ID` if none.
    pub client_id: Option<String>,
    /// The file that holds the application's secret, read once; `AZURE_CLIENT_SECRET` if none.
    pub client_secret_file: Option<PathBuf>,
    /// The file that holds a workload's token; `AZURE_FEDERATED_TOKEN_FILE` if none.
    pub token_file: Option<PathBuf>,
    /// The URL of the login service, for sovereign clouds; `AZURE_AUTHORITY_HOST` if none.
    pub authority: Option<String>,
    /// Certificates (PEM) of the authorities that are trusted instead of the system's.
    pub ca_file: Option<PathBuf>,
    /// Whether a vault may only ask for tokens for the domain that it is in.
    pub verify_challenge: bool,
}

impl Default for Azure {
    fn default() -> Self {
        Self {
            login: None,
            tenant_id: None,
            client_id: None,
            client_secret_file: None,
            token_file: None,
            authority: None,
            ca_file: None,
            verify_challenge: true,
        }
    }
}

/// How to log in to Azure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AzureLogin {
    /// As a Kubernetes workload, by a projected token.
    WorkloadIdentity,
    /// As the machine or platform that this runs on.
    ManagedIdentity,
    /// As an application, by its secret.
    ClientSecret,
    /// As whoever is logged in to the command `az`.
    Cli,
}

/// Web servers that manifests are read from.
#[derive(Debug, Clone, Default)]
pub struct Web {
    /// Certificates (PEM) of the authorities that are trusted instead of the system's.
    pub ca_file: Option<PathBuf>,
    /// Our certificate chain (PEM).
    pub client_certificate: Option<PathBuf>,
    /// Its key (PEM).
    pub client_key: Option<PathBuf>,
}

/// KEKs in files of this machine.
#[derive(Debug, Clone, Default)]
pub struct Local {
    /// The file that holds the passphrase of those that are encrypted.
    pub passphrase_file: Option<PathBuf>,
}

/// Hardware security modules.
#[derive(Debug, Clone, Default)]
pub struct Pkcs11 {
    /// The module's library, for URIs that name none.
    pub module: Option<PathBuf>,
}

const SERVICE_ACCOUNT_TOKEN: &str = "/var/run/secrets/kubernetes.io/serviceaccount/token";

pub(super) fn backends(root: &Section<'_>, folder: &Path) -> Read<Backends> {
    let vault = root.section("vault", |section| vault(section, folder));
    let aws = root.section("aws", aws);
    let azure = root.section("azure", |section| azure(section, folder));
    let pkcs11 = root.section("pkcs11", |section| {
        section
            .maybe("module", |value| path(value, folder))
            .map(|module| Pkcs11 { module })
    });
    let local = root.section("local", |section| {
        section
            .maybe("passphrase_file", |value| path(value, folder))
            .map(|passphrase_file| Local { passphrase_file })
    });
    let web = root.section("web", |section| {
        let (ca_file, client_certificate, client_key) = tls(section, folder)?;
        Ok(Web {
            ca_file,
            client_certificate,
            client_key,
        })
    });
    let both = root.section("backends", |section| {
        let plain_http = section.or("plain_http", Vec::new(), |value| {
            value.list(|item| text(&item))
        });
        let local_keks = section.or("local_keks", false, Value::boolean);
        Ok((plain_http?, local_keks?))
    });
    let (plain_http, local_keks) = both?;
    Ok(Backends {
        vault: vault?,
        aws: aws?,
        azure: azure?,
        pkcs11: pkcs11?,
        local: local?,
        web: web?,
        plain_http,
        local_keks,
    })
}

fn vault(section: &Section<'_>, folder: &Path) -> Read<Vault> {
    let address = section.maybe("address", text);
    let namespace = section.maybe("namespace", text);
    let tls = tls(section, folder);
    let login = login(section, folder);
    let (ca_file, client_certificate, client_key) = tls?;
    Ok(Vault {
        address: address?,
        namespace: namespace?,
        ca_file,
        client_certificate,
        client_key,
        login: login?,
    })
}

/// Authorities, our certificate and its key.
type Tls = (Option<PathBuf>, Option<PathBuf>, Option<PathBuf>);

fn tls(section: &Section<'_>, folder: &Path) -> Read<Tls> {
    let ca_file = section.maybe("ca_file", |value| path(value, folder));
    let client_certificate = section.maybe("client_certificate", |value| path(value, folder));
    let client_key = section.maybe("client_key", |value| path(value, folder));
    match (ca_file?, client_certificate?, client_key?) {
        (_, Some(_), None) | (_, None, Some(_)) => {
            Err(section.problem("client_certificate and client_key go together"))
        }
        tls => Ok(tls),
    }
}

#[derive(Clone, Copy)]
enum Method {
    TokenFile,
    AppRole,
    Kubernetes,
    Jwt,
}

fn login(section: &Section<'_>, folder: &Path) -> Read<VaultLogin> {
    if !section.has("login") {
        return Ok(VaultLogin::Environment);
    }
    let methods = [
        ("token-file", Method::TokenFile),
        ("approle", Method::AppRole),
        ("kubernetes", Method::Kubernetes),
        ("jwt", Method::Jwt),
    ];
    section.section("login", |section| {
        let file = |key| section.required(key).and_then(|value| path(&value, folder));
        let mount = |default: &str| section.or("mount", default.to_owned(), text);
        let jwt = |mount: Read<String>, token_file: Read<PathBuf>| {
            let role = section.required("role").and_then(|value| text(&value));
            Ok(VaultLogin::Jwt {
                mount: mount?,
                role: role?,
                token_file: token_file?,
            })
        };
        match section
            .required("method")
            .and_then(|value| value.choice(&methods))?
        {
            Method::TokenFile => file("token_file").map(VaultLogin::TokenFile),
            Method::AppRole => {
                let role_id = section.required("role_id").and_then(|value| text(&value));
                let (mount, secret_id_file) = (mount("approle"), file("secret_id_file"));
                Ok(VaultLogin::AppRole {
                    mount: mount?,
                    role_id: role_id?,
                    secret_id_file: secret_id_file?,
                })
            }
            Method::Kubernetes => {
                let token_file = section.or("token_file", SERVICE_ACCOUNT_TOKEN.into(), |value| {
                    path(value, folder)
                });
                jwt(mount("kubernetes"), token_file)
            }
            Method::Jwt => jwt(mount("jwt"), file("token_file")),
        }
    })
}

fn aws(section: &Section<'_>) -> Read<Aws> {
    let region = section.maybe("region", text);
    let profile = section.maybe("profile", text);
    let endpoint = section.maybe("endpoint", text);
    let fips = section.or("fips", false, Value::boolean);
    Ok(Aws {
        region: region?,
        profile: profile?,
        endpoint: endpoint?,
        fips: fips?,
    })
}

fn azure(section: &Section<'_>, folder: &Path) -> Read<Azure> {
    let logins = [
        ("workload-identity", AzureLogin::WorkloadIdentity),
        ("managed-identity", AzureLogin::ManagedIdentity),
        ("client-secret", AzureLogin::ClientSecret),
        ("cli", AzureLogin::Cli),
    ];
    let login = section.maybe("login", |value| value.choice(&logins));
    let tenant_id = section.maybe("tenant_id", text);
    let client_id = section.maybe("client_id", text);
    let client_secret_file = section.maybe("client_secret_file", |value| path(value, folder));
    let token_file = section.maybe("token_file", |value| path(value, folder));
    let authority = section.maybe("authority", text);
    let ca_file = section.maybe("ca_file", |value| path(value, folder));
    let verify_challenge = section.or("verify_challenge", true, Value::boolean);
    Ok(Azure {
        login: login?,
        tenant_id: tenant_id?,
        client_id: client_id?,
        client_secret_file: client_secret_file?,
        token_file: token_file?,
        authority: authority?,
        ca_file: ca_file?,
        verify_challenge: verify_challenge?,
    })
}

fn text(value: &Value<'_>) -> Read<String> {
    value.some_text().map(str::to_owned)
}

fn path(value: &Value<'_>, folder: &Path) -> Read<PathBuf> {
    value.some_text().map(|text| folder.join(text))
}
