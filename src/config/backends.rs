//! `[vault]`, `[aws]`, `[azure]`, `[pkcs11]`, `[local]`, `[web]` and `[backends]`: how outside
//! systems are reached.

use std::path::PathBuf;

use super::reader::{Parsed, Section, Value};

/// How outside systems are reached. Settings that are missing come from each system's usual
/// environment variables.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Backends {
    /// Vault or OpenBao.
    pub vault: Vault,
    /// Amazon Web Services.
    pub aws: Aws,
    /// Azure Key Vault.
    pub azure: Azure,
    /// Hardware security modules.
    pub pkcs11: Pkcs11,
    /// KEKs in local files.
    pub local: Local,
    /// Web servers that serve manifests.
    pub web: Web,
    /// Hosts that may be contacted without TLS. Loopback is always allowed.
    pub plain_http: Vec<String>,
    /// Whether KEKs in local files are intended, so that no warning is logged.
    pub local_keks: bool,
}

/// Vault or OpenBao.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Vault {
    /// The server's URL. Default: `VAULT_ADDR`.
    pub address: Option<String>,
    /// The namespace. Default: `VAULT_NAMESPACE`.
    pub namespace: Option<String>,
    /// The trusted authorities' certificates (PEM). Default: `VAULT_CACERT`, or the system's.
    pub ca_file: Option<PathBuf>,
    /// The client certificate chain (PEM). Default: `VAULT_CLIENT_CERT`.
    pub client_certificate: Option<PathBuf>,
    /// The client certificate's private key (PEM). Default: `VAULT_CLIENT_KEY`.
    pub client_key: Option<PathBuf>,
    /// How to log in.
    pub login: VaultLogin,
}

/// How to log in to Vault. Files are read again for every login, because they may have been
/// rewritten.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum VaultLogin {
    /// With the token in `VAULT_TOKEN`, or in `~/.vault-token`.
    #[default]
    Environment,
    /// With the token in a file.
    TokenFile(PathBuf),
    /// With AppRole.
    AppRole {
        /// The auth method's mount path.
        mount: String,
        /// The role ID.
        role_id: String,
        /// The file that holds the secret ID.
        secret_id_file: PathBuf,
    },
    /// With a signed token in a file: the auth methods `kubernetes` and `jwt`.
    Jwt {
        /// The auth method's mount path.
        mount: String,
        /// The role.
        role: String,
        /// The file that holds the token.
        token_file: PathBuf,
    },
}

/// Amazon Web Services. Credentials come from the SDK's default chain.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Aws {
    /// The region of keys and secrets that don't name one. Default: the SDK's default chain.
    pub region: Option<String>,
    /// The profile in the shared config files.
    pub profile: Option<String>,
    /// One URL for all services, instead of AWS's own.
    pub endpoint: Option<String>,
    /// Whether to use FIPS 140 validated endpoints.
    pub fips: bool,
}

/// Azure Key Vault and Managed HSM.
#[derive(Debug, Clone, PartialEq)]
pub struct Azure {
    /// How to log in. Default: as the environment suggests.
    pub login: Option<AzureLogin>,
    /// The tenant. Default: `AZURE_TENANT_ID`.
    pub tenant_id: Option<String>,
    /// The application or user-assigned identity. Default: `AZURE_CLIENT_ID`.
    pub client_id: Option<String>,
    /// The file that holds the application's secret, read once. Default: `AZURE_CLIENT_SECRET`.
    pub client_secret_file: Option<PathBuf>,
    /// The file that holds a workload's token. Default: `AZURE_FEDERATED_TOKEN_FILE`.
    pub token_file: Option<PathBuf>,
    /// The URL of the login service, for sovereign clouds. Default: `AZURE_AUTHORITY_HOST`.
    pub authority: Option<String>,
    /// The trusted authorities' certificates (PEM). Default: the system's.
    pub ca_file: Option<PathBuf>,
    /// Whether a vault may only request tokens for its own domain.
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
    /// As a Kubernetes workload, with a projected token.
    WorkloadIdentity,
    /// As the host machine or platform.
    ManagedIdentity,
    /// As an application, with its secret.
    ClientSecret,
    /// As the user who is logged in to the Azure CLI.
    Cli,
}

/// Web servers that serve manifests.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Web {
    /// The trusted authorities' certificates (PEM). Default: the system's.
    pub ca_file: Option<PathBuf>,
    /// The client certificate chain (PEM).
    pub client_certificate: Option<PathBuf>,
    /// The client certificate's private key (PEM).
    pub client_key: Option<PathBuf>,
}

/// KEKs in local files.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Local {
    /// The file that holds the passphrase of encrypted KEKs.
    pub passphrase_file: Option<PathBuf>,
}

/// Hardware security modules.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Pkcs11 {
    /// The module's library, for URIs that don't name one.
    pub module: Option<PathBuf>,
}

const SERVICE_ACCOUNT_TOKEN: &str = "/var/run/secrets/kubernetes.io/serviceaccount/token";

pub(super) fn backends(root: &Section<'_>) -> Parsed<Backends> {
    let vault = root.section("vault", vault);
    let aws = root.section("aws", aws);
    let azure = root.section("azure", azure);
    let pkcs11 = root.section("pkcs11", |section| {
        section
            .maybe("module", Value::path)
            .map(|module| Pkcs11 { module })
    });
    let local = root.section("local", |section| {
        section
            .maybe("passphrase_file", Value::path)
            .map(|passphrase_file| Local { passphrase_file })
    });
    let web = root.section("web", |section| {
        let (ca_file, client_certificate, client_key) = tls(section)?;
        Ok(Web {
            ca_file,
            client_certificate,
            client_key,
        })
    });
    let both = root.section("backends", |section| {
        let plain_http = section.or("plain_http", Vec::new(), |value| {
            value.list(|item| item.string())
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

fn vault(section: &Section<'_>) -> Parsed<Vault> {
    let address = section.maybe("address", Value::string);
    let namespace = section.maybe("namespace", Value::string);
    let tls = tls(section);
    let login = login(section);
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

/// Trusted authorities, client certificate and its key.
type Tls = (Option<PathBuf>, Option<PathBuf>, Option<PathBuf>);

fn tls(section: &Section<'_>) -> Parsed<Tls> {
    let ca_file = section.maybe("ca_file", Value::path);
    let client_certificate = section.maybe("client_certificate", Value::path);
    let client_key = section.maybe("client_key", Value::path);
    match (ca_file?, client_certificate?, client_key?) {
        (_, Some(_), None) | (_, None, Some(_)) => {
            Err(section.problem("client_certificate and client_key must be set together"))
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

fn login(section: &Section<'_>) -> Parsed<VaultLogin> {
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
        let file = |key| section.required(key).and_then(|value| value.path());
        let mount = |default: &str| section.or("mount", default.to_owned(), Value::string);
        let jwt = |mount: Parsed<String>, token_file: Parsed<PathBuf>| {
            let role = section.required("role").and_then(|value| value.string());
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
                let role_id = section.required("role_id").and_then(|value| value.string());
                let (mount, secret_id_file) = (mount("approle"), file("secret_id_file"));
                Ok(VaultLogin::AppRole {
                    mount: mount?,
                    role_id: role_id?,
                    secret_id_file: secret_id_file?,
                })
            }
            Method::Kubernetes => {
                let token_file = section.or("token_file", SERVICE_ACCOUNT_TOKEN.into(), |value| {
                    value.path()
                });
                jwt(mount("kubernetes"), token_file)
            }
            Method::Jwt => jwt(mount("jwt"), file("token_file")),
        }
    })
}

fn aws(section: &Section<'_>) -> Parsed<Aws> {
    let region = section.maybe("region", Value::string);
    let profile = section.maybe("profile", Value::string);
    let endpoint = section.maybe("endpoint", Value::string);
    let fips = section.or("fips", false, Value::boolean);
    Ok(Aws {
        region: region?,
        profile: profile?,
        endpoint: endpoint?,
        fips: fips?,
    })
}

fn azure(section: &Section<'_>) -> Parsed<Azure> {
    let logins = [
        ("workload-identity", AzureLogin::WorkloadIdentity),
        ("managed-identity", AzureLogin::ManagedIdentity),
        ("client-secret", AzureLogin::ClientSecret),
        ("cli", AzureLogin::Cli),
    ];
    let login = section.maybe("login", |value| value.choice(&logins));
    let tenant_id = section.maybe("tenant_id", Value::string);
    let client_id = section.maybe("client_id", Value::string);
    let client_secret_file = section.maybe("client_secret_file", Value::path);
    let token_file = section.maybe("token_file", Value::path);
    let authority = section.maybe("authority", Value::string);
    let ca_file = section.maybe("ca_file", Value::path);
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
