//! Mongoose's parsed connection options as the Rust driver's `ClientOptions`.
//!
//! JavaScript has picked the options and refused what cannot be carried; names and units here are those of the Node
//! driver. Nothing is read from a URI or looked up in the DNS.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bson::{Document, oid::ObjectId};
use mongodb::options::{
    AuthMechanism, ClientOptions, Compressor, Credential, DriverInfo, ServerAddress, ServerApi,
    ServerApiVersion, ServerMonitoringMode, Tls, TlsOptions,
};
use serde::Deserialize;

use crate::error::Error;

/// What the Node driver means by "no limit" where the Rust driver wants a number.
const UNLIMITED: Duration = Duration::from_secs(60 * 60 * 24 * 365);

/// More than is ever used: the keepers' commands are bounded, and each collection that is waited for takes one for its stream.
const ASIDE_POOL_SIZE: u32 = 100;

/// The connection options, as JavaScript gives them.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ConnectionOptions {
    hosts: Vec<Host>,
    app_name: Option<String>,
    replica_set: Option<String>,
    direct_connection: Option<bool>,
    load_balanced: Option<bool>,
    credentials: Option<Credentials>,
    tls: Option<TlsMaterial>,
    server_api: Option<Api>,
    #[serde(default)]
    compressors: Vec<String>,
    zlib_compression_level: Option<u32>,
    max_pool_size: Option<u32>,
    min_pool_size: Option<u32>,
    max_connecting: Option<u32>,
    #[serde(rename = "maxIdleTimeMS")]
    max_idle_time_ms: Option<u64>,
    #[serde(rename = "connectTimeoutMS")]
    connect_timeout_ms: Option<u64>,
    #[serde(rename = "heartbeatFrequencyMS")]
    heartbeat_frequency_ms: Option<u64>,
    #[serde(rename = "localThresholdMS")]
    local_threshold_ms: Option<u64>,
    #[serde(rename = "serverSelectionTimeoutMS")]
    server_selection_timeout_ms: Option<u64>,
    #[serde(rename = "socketTimeoutMS")]
    socket_timeout_ms: Option<u64>,
    server_monitoring_mode: Option<String>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
enum Host {
    Tcp { host: String, port: u16 },
    Socket { path: PathBuf },
}

#[derive(Clone, Deserialize)]
struct Credentials {
    username: Option<String>,
    password: Option<String>,
    source: Option<String>,
    mechanism: Option<String>,
    properties: Option<Document>,
}

/// PEM texts: the Rust driver takes paths, so they go through files that are removed at once.
#[derive(Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct TlsMaterial {
    ca: Option<String>,
    certificate_key: Option<String>,
    allow_invalid_certificates: Option<bool>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Api {
    version: String,
    strict: Option<bool>,
    deprecation_errors: Option<bool>,
}

// Secrets stay out of debug output.
impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials").finish_non_exhaustive()
    }
}

impl std::fmt::Debug for TlsMaterial {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TlsMaterial").finish_non_exhaustive()
    }
}

impl ConnectionOptions {
    /// Reads the options from the BSON that JavaScript sent.
    pub fn from_bson(bytes: &[u8]) -> Result<Self, Error> {
        Ok(bson::deserialize_from_slice(bytes)?)
    }

    /// How long a call may take: the server selection's time-out, or the socket's if that is shorter.
    pub fn limit(&self) -> Duration {
        let selection = self.server_selection_timeout();
        match self.socket_timeout_ms {
            Some(ms) if ms > 0 => selection.min(Duration::from_millis(ms)),
            _ => selection,
        }
    }

    /// The same, for a small client beside the one that calls go by: neither must starve the other.
    #[must_use]
    pub fn aside(mut self) -> Self {
        self.max_pool_size = Some(ASIDE_POOL_SIZE);
        self.min_pool_size = None;
        self
    }

    /// Makes a client of them.
    ///
    /// # Panics
    /// Outside a tokio runtime: the driver starts its monitors on it.
    pub fn connect(self) -> Result<mongodb::Client, Error> {
        let (options, files) = self.into_client_options()?;
        // The driver reads the files while it makes the client, and never again.
        let client = mongodb::Client::with_options(options);
        drop(files);
        Ok(client?)
    }

    fn server_selection_timeout(&self) -> Duration {
        Duration::from_millis(self.server_selection_timeout_ms.unwrap_or(30_000))
    }

    fn into_client_options(self) -> Result<(ClientOptions, Vec<SecretFile>), Error> {
        let mut options = ClientOptions::default();
        let mut files = Vec::new();
        options.server_selection_timeout = Some(self.server_selection_timeout());
        options.hosts = self.hosts.into_iter().map(Host::into_address).collect::<Result<_, _>>()?;
        options.app_name = self.app_name;
        options.repl_set_name = self.replica_set;
        options.direct_connection = self.direct_connection;
        options.load_balanced = self.load_balanced;
        options.credential = self.credentials.map(Credentials::into_credential).transpose()?;
        options.server_api = self.server_api.map(Api::into_server_api).transpose()?;
        options.compressors = compressors(&self.compressors, self.zlib_compression_level);
        // In the Node driver 0 stands for "no limit"; the Rust driver has a default of 10.
        options.max_pool_size = Some(match self.max_pool_size {
            None => 100,
            Some(0) => u32::MAX,
            Some(size) => size,
        });
        options.min_pool_size = self.min_pool_size;
        options.max_connecting = self.max_connecting.filter(|&count| count > 0);
        options.max_idle_time = milliseconds(self.max_idle_time_ms);
        options.connect_timeout = match self.connect_timeout_ms {
            Some(0) => Some(UNLIMITED),
            ms => milliseconds(ms.or(Some(30_000))),
        };
        options.heartbeat_freq = milliseconds(self.heartbeat_frequency_ms);
        options.local_threshold = self.local_threshold_ms.map(Duration::from_millis);
        options.server_monitoring_mode = match self.server_monitoring_mode.as_deref() {
            Some("stream") => Some(ServerMonitoringMode::Stream),
            Some("poll") => Some(ServerMonitoringMode::Poll),
            _ => None,
        };
        options.driver_info = Some(
            DriverInfo::builder()
                .name("mongoose-lock-release".to_owned())
                .version(Some(env!("CARGO_PKG_VERSION").to_owned()))
                .build(),
        );
        // A lock, an extension and a holder's release are idempotent by their lease: we send them again ourselves
        // and spare the server the bookkeeping of retryable writes.
        options.retry_writes = Some(false);
        if let Some(material) = self.tls {
            options.tls = Some(Tls::Enabled(material.into_tls_options(&mut files)?));
        }
        Ok((options, files))
    }
}

impl Host {
    #[cfg_attr(unix, allow(clippy::unnecessary_wraps))]
    fn into_address(self) -> Result<ServerAddress, Error> {
        match self {
            Self::Tcp { host, port } => Ok(ServerAddress::Tcp { host, port: Some(port) }),
            #[cfg(unix)]
            Self::Socket { path } => Ok(ServerAddress::Unix { path }),
            #[cfg(not(unix))]
            Self::Socket { .. } => Err(Error::UnsupportedOption("socketPath".to_owned())),
        }
    }
}

impl Credentials {
    fn into_credential(self) -> Result<Credential, Error> {
        let mechanism = match self.mechanism.as_deref() {
            None | Some("DEFAULT") => None,
            Some("SCRAM-SHA-1") => Some(AuthMechanism::ScramSha1),
            Some("SCRAM-SHA-256") => Some(AuthMechanism::ScramSha256),
            Some("MONGODB-X509") => Some(AuthMechanism::MongoDbX509),
            Some("PLAIN") => Some(AuthMechanism::Plain),
            Some(other) => return Err(Error::UnsupportedOption(format!("authMechanism={other}"))),
        };
        let mut credential = Credential::default();
        credential.username = self.username;
        credential.password = self.password;
        credential.source = self.source;
        credential.mechanism = mechanism;
        credential.mechanism_properties = self.properties;
        Ok(credential)
    }
}

impl Api {
    fn into_server_api(self) -> Result<ServerApi, Error> {
        if self.version != "1" {
            return Err(Error::UnsupportedOption(format!("serverApi.version={}", self.version)));
        }
        let mut api = ServerApi::builder().version(ServerApiVersion::V1).build();
        api.strict = self.strict;
        api.deprecation_errors = self.deprecation_errors;
        Ok(api)
    }
}

impl TlsMaterial {
    fn into_tls_options(self, files: &mut Vec<SecretFile>) -> Result<TlsOptions, Error> {
        let mut file = |pem: Option<String>| -> Result<Option<PathBuf>, Error> {
            let Some(pem) = pem else { return Ok(None) };
            let file = SecretFile::new(&std::env::temp_dir(), pem.as_bytes())?;
            let path = file.0.clone();
            files.push(file);
            Ok(Some(path))
        };
        let mut options = TlsOptions::default();
        options.ca_file_path = file(self.ca)?;
        options.cert_key_file_path = file(self.certificate_key)?;
        options.allow_invalid_certificates = self.allow_invalid_certificates;
        Ok(options)
    }
}

/// A file that only this user can read, removed when dropped.
struct SecretFile(PathBuf);

impl SecretFile {
    fn new(directory: &Path, contents: &[u8]) -> Result<Self, Error> {
        let path = directory.join(format!("mongoose-lock-release-{}", ObjectId::new()));
        let mut options = std::fs::OpenOptions::new();
        options.write(true).create_new(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let mut file = options.open(&path)?;
        let file_guard = Self(path);
        file.write_all(contents)?;
        Ok(file_guard)
    }
}

impl Drop for SecretFile {
    fn drop(&mut self) {
        // Nothing can be done about a temporary file that cannot be removed.
        let _ = std::fs::remove_file(&self.0);
    }
}

/// The compressors that are built in, in the user's order; what is not built in is left out, as a server that lacks
/// it would.
fn compressors(names: &[String], zlib_level: Option<u32>) -> Option<Vec<Compressor>> {
    let compressors: Vec<_> = names
        .iter()
        .filter_map(|name| match name.as_str() {
            "zlib" => Some(Compressor::Zlib { level: zlib_level.filter(|level| *level != 0) }),
            "snappy" => Some(Compressor::Snappy),
            _ => None,
        })
        .collect();
    (!compressors.is_empty()).then_some(compressors)
}

/// A duration, where the Node driver's 0 means that there is none.
fn milliseconds(ms: Option<u64>) -> Option<Duration> {
    ms.filter(|&ms| ms > 0).map(Duration::from_millis)
}

#[cfg(test)]
mod tests {
    use bson::doc;

    use super::*;

    fn read(options: &Document) -> ConnectionOptions {
        ConnectionOptions::from_bson(&options.to_vec().unwrap()).unwrap()
    }

    fn client_options(options: &Document) -> ClientOptions {
        read(options).into_client_options().unwrap().0
    }

    fn hosts() -> Vec<Document> {
        vec![doc! { "host": "db.example", "port": 27018 }]
    }

    #[test]
    fn the_node_drivers_zeroes_mean_no_limit() {
        let options = client_options(
            &doc! { "hosts": hosts(), "maxPoolSize": 0, "connectTimeoutMS": 0, "maxIdleTimeMS": 0 },
        );
        assert_eq!(options.max_pool_size, Some(u32::MAX));
        assert_eq!(options.connect_timeout, Some(UNLIMITED));
        assert_eq!(options.max_idle_time, None);
    }

    #[test]
    fn defaults_are_the_node_drivers() {
        let options = client_options(&doc! { "hosts": hosts() });
        assert_eq!(options.max_pool_size, Some(100));
        assert_eq!(options.server_selection_timeout, Some(Duration::from_secs(30)));
        assert_eq!(options.connect_timeout, Some(Duration::from_secs(30)));
        assert_eq!(options.retry_writes, Some(false));
    }

    #[test]
    fn a_call_is_limited_by_the_shorter_of_two_time_outs() {
        let options = read(&doc! { "hosts": hosts(), "serverSelectionTimeoutMS": 500 });
        assert_eq!(options.limit(), Duration::from_millis(500));
        let options = read(
            &doc! { "hosts": hosts(), "serverSelectionTimeoutMS": 500, "socketTimeoutMS": 200 },
        );
        assert_eq!(options.limit(), Duration::from_millis(200));
    }

    #[test]
    fn unknown_mechanisms_and_options_are_refused_by_name() {
        let options = read(&doc! { "hosts": hosts(), "credentials": { "mechanism": "GSSAPI" } });
        let error = options.into_client_options().err().unwrap();
        assert!(error.to_string().contains("authMechanism=GSSAPI"));
        let bytes = doc! { "hosts": hosts(), "nonsense": 1 }.to_vec().unwrap();
        assert!(ConnectionOptions::from_bson(&bytes).unwrap_err().to_string().contains("nonsense"));
    }

    #[test]
    fn secrets_do_not_show_in_debug_output() {
        let options = read(&doc! {
            "hosts": hosts(),
            "credentials": { "username": "u", "password": "hunter2" },
            "tls": { "ca": "PEM-CA", "certificateKey": "PEM-KEY" },
        });
        let text = format!("{options:?}");
        assert!(!text.contains("hunter2") && !text.contains("PEM"));
    }

    #[test]
    fn compressors_that_are_not_built_in_are_left_out() {
        let options =
            client_options(&doc! { "hosts": hosts(), "compressors": ["zstd", "snappy", "zlib"] });
        assert_eq!(options.compressors.unwrap().len(), 2);
        assert!(
            client_options(&doc! { "hosts": hosts(), "compressors": ["zstd"] })
                .compressors
                .is_none()
        );
    }

    #[cfg(unix)]
    #[test]
    fn secret_files_are_private_and_removed() {
        use std::os::unix::fs::PermissionsExt;
        let file = SecretFile::new(&std::env::temp_dir(), b"secret").unwrap();
        let path = file.0.clone();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        drop(file);
        assert!(!path.exists());
    }
}
