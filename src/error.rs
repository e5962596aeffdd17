//! Everything that can go wrong on the native side, and how it is told to JavaScript.
//!
//! A report carries plain values; JavaScript makes the `Error` of the class that the user's own driver would have
//! used. No message carries a credential.

use std::collections::BTreeSet;

use bson::{Document, doc};
use mongodb::error::{Error as DriverError, ErrorKind};

/// Codes after which the same command may succeed on the same or on another server: the node steps down, shuts down
/// or is not (yet) primary. Source: the drivers' specification of retryable writes and of server discovery.
const PASSING_CODES: [i32; 15] =
    [6, 7, 89, 91, 134, 189, 262, 9001, 10058, 10107, 11600, 11602, 13435, 13436, 317];

/// The server's code for "operation exceeded time limit".
const MAX_TIME_MS_EXPIRED: i32 = 50;

/// What can go wrong.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The driver's own error: the server's, the network's, or a configuration's.
    #[error("{0}")]
    Driver(#[from] DriverError),

    /// The command was applied, but not acknowledged as the write concern asks.
    #[error("{message}")]
    WriteConcern {
        /// The server's code.
        code: i32,
        /// The server's name of the code.
        code_name: String,
        /// The server's message.
        message: String,
        /// The server's error labels.
        labels: BTreeSet<String>,
    },

    /// The write failed, after it had been applied in part perhaps.
    #[error("{message}")]
    Write {
        /// The server's code.
        code: i32,
        /// The server's name of the code; most write errors have none.
        code_name: String,
        /// The server's message.
        message: String,
        /// The server's error labels.
        labels: BTreeSet<String>,
    },

    /// No answer within the time that the call was given.
    #[error("no answer from MongoDB within {after_ms} ms")]
    TimedOut {
        /// The time that the call was given.
        after_ms: u128,
    },

    /// The MongoClient was closed.
    #[error("the MongoClient was closed")]
    Closed,

    /// Bytes from JavaScript that are no BSON of the expected shape.
    #[error("{0}")]
    Bson(#[from] bson::error::Error),

    /// A connection option that cannot be carried over, by name.
    #[error("the connection option {0} is not supported")]
    UnsupportedOption(String),

    /// The operating system refused something that is needed (a thread, a temporary file).
    #[error("{0}")]
    System(#[from] std::sync::Arc<std::io::Error>),

    /// A defect of ours.
    #[error("internal error: {0}")]
    Internal(&'static str),
}

impl From<std::io::Error> for Error {
    fn from(error: std::io::Error) -> Self {
        Self::System(std::sync::Arc::new(error))
    }
}

impl Error {
    /// Whether the same command may succeed when it is sent again.
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Driver(error) => match error.kind.as_ref() {
                ErrorKind::Io(_) | ErrorKind::ConnectionPoolCleared { .. } => true,
                ErrorKind::Command(command) => PASSING_CODES.contains(&command.code),
                _ => error.contains_label("RetryableWriteError"),
            },
            Self::WriteConcern { code, .. } | Self::Write { code, .. } => {
                PASSING_CODES.contains(code)
            }
            _ => false,
        }
    }

    /// Whether the command may have been applied all the same.
    pub fn is_ambiguous(&self) -> bool {
        let expired = matches!(
            self,
            Self::Driver(error)
                if matches!(error.kind.as_ref(), ErrorKind::Command(c) if c.code == MAX_TIME_MS_EXPIRED)
        );
        expired
            || self.is_passing()
            || matches!(
                self,
                Self::WriteConcern { .. }
                    | Self::Write { .. }
                    | Self::TimedOut { .. }
                    | Self::Closed
            )
    }

    /// Whether the server understood and will not do it, now or a moment later.
    pub fn is_refusal(&self) -> bool {
        let is_command = matches!(
            self,
            Self::Driver(error) if matches!(error.kind.as_ref(), ErrorKind::Command(_))
        );
        is_command && !self.is_ambiguous()
    }

    /// Whether no suitable server was found in time: nothing was sent.
    pub fn is_server_selection(&self) -> bool {
        matches!(
            self,
            Self::Driver(error) if matches!(error.kind.as_ref(), ErrorKind::ServerSelection { .. })
        )
    }

    /// The error as JavaScript reads it: `kind` names the class, the rest are its properties.
    pub fn report(&self) -> Document {
        let mut report = doc! { "kind": self.kind(), "message": self.message() };
        match self {
            Self::Driver(error) => {
                if let ErrorKind::Command(command) = error.kind.as_ref() {
                    report.insert("code", command.code);
                    report.insert("codeName", &command.code_name);
                }
                report.insert("labels", error.labels().iter().collect::<Vec<_>>());
            }
            Self::WriteConcern { code, code_name, labels, .. }
            | Self::Write { code, code_name, labels, .. } => {
                report.insert("code", *code);
                report.insert("codeName", code_name);
                report.insert("labels", labels.iter().collect::<Vec<_>>());
            }
            Self::UnsupportedOption(name) => {
                report.insert("option", name);
            }
            _ => {}
        }
        report
    }

    fn kind(&self) -> &'static str {
        match self {
            Self::Driver(error) => match error.kind.as_ref() {
                ErrorKind::Command(_) | ErrorKind::Write(_) => "server",
                ErrorKind::Authentication { .. } => "authentication",
                ErrorKind::Io(io) if io.kind() == std::io::ErrorKind::TimedOut => "networkTimeout",
                ErrorKind::Io(_)
                | ErrorKind::ConnectionPoolCleared { .. }
                | ErrorKind::DnsResolve { .. } => "network",
                ErrorKind::ServerSelection { .. } => "serverSelection",
                ErrorKind::Shutdown => "closed",
                ErrorKind::InvalidArgument { .. } | ErrorKind::InvalidTlsConfig { .. } => {
                    "configuration"
                }
                ErrorKind::IncompatibleServer { .. } => "incompatible",
                _ => "runtime",
            },
            Self::WriteConcern { .. } => "writeConcern",
            Self::Write { .. } => "server",
            Self::TimedOut { .. } => "networkTimeout",
            Self::Closed => "closed",
            Self::UnsupportedOption(_) => "unsupportedOption",
            Self::Bson(_) | Self::System(_) | Self::Internal(_) => "runtime",
        }
    }

    /// The message alone: the driver's `Display` adds labels and the server's whole answer.
    fn message(&self) -> String {
        match self {
            Self::Driver(error) => match error.kind.as_ref() {
                ErrorKind::Command(command) => command.message.clone(),
                ErrorKind::Io(io) => io.to_string(),
                ErrorKind::ServerSelection { message, .. } => {
                    format!("{message}{}", tls_hint(message))
                }
                kind => kind.to_string(),
            },
            other => other.to_string(),
        }
    }
}

/// rustls refuses two kinds of server certificates that Node's OpenSSL takes; its own words do not say what to do.
fn tls_hint(message: &str) -> &'static str {
    if message.contains("CaUsedAsEndEntity") {
        " (the server presents a CA certificate, perhaps a self-signed one given as its own CA: the native TLS of \
         mongoose-lock-release needs a server certificate that is issued by a CA, with basicConstraints CA:FALSE)"
    } else if message.contains("UnsupportedCertVersion") {
        " (the certificate is X.509 version 1: the native TLS of mongoose-lock-release needs version 3, with a \
         subjectAltName)"
    } else {
        ""
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write_concern(code: i32) -> Error {
        let (code_name, message) = ("Name".to_owned(), "text".to_owned());
        Error::WriteConcern { code, code_name, message, labels: BTreeSet::new() }
    }

    #[test]
    fn a_failed_write_concern_may_have_been_applied_whatever_its_code() {
        assert!(write_concern(91).is_passing() && write_concern(91).is_ambiguous());
        assert!(!write_concern(64).is_passing() && write_concern(64).is_ambiguous());
    }

    #[test]
    fn a_network_error_passes_and_is_ambiguous() {
        let io = std::io::Error::from(std::io::ErrorKind::ConnectionReset);
        let error = Error::Driver(ErrorKind::Io(std::sync::Arc::new(io)).into());
        assert!(error.is_passing() && error.is_ambiguous());
        assert_eq!(error.report().get_str("kind").unwrap(), "network");
    }

    #[test]
    fn reports_are_plain_values() {
        let report = write_concern(64).report();
        assert_eq!(report.get_i32("code").unwrap(), 64);
        assert_eq!(report.get_str("kind").unwrap(), "writeConcern");
        assert_eq!(Error::Closed.report().get_str("kind").unwrap(), "closed");
    }

    #[test]
    fn the_two_refusals_of_rustls_are_explained() {
        assert!(
            tls_hint("invalid peer certificate: Other(CaUsedAsEndEntity)")
                .contains("issued by a CA")
        );
        assert!(tls_hint("UnsupportedCertVersion").contains("version 1"));
        assert_eq!(tls_hint("UnknownIssuer"), "");
    }
}
