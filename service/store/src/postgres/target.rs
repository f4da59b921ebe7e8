//! The connection string. One parser reads it once for both drivers. A part that one driver would interpret
//! differently, or take from somewhere else, is either passed to both drivers or refused.

use std::path::Path;
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgSslMode};
use tokio_postgres::Config;
use tokio_postgres::config::{ChannelBinding, SslMode};

use super::tls::{Connector, Trust};
use crate::contract::{Error, Result};

const PORT: u16 = 5432;
/// The number of prepared statements that a pooled connection keeps.
const STATEMENTS_MAX: usize = 256;

/// Where the database is, and how to connect to it.
#[derive(Clone)]
pub(super) struct Target {
    /// For the lane.
    pub config: Config,
    pub connector: Connector,
    /// For everything else.
    pub options: PgConnectOptions,
}

/// A parsed connection string.
#[derive(Debug, Default, PartialEq, Eq)]
struct Parts {
    host: Option<String>,
    port: Option<u16>,
    user: Option<String>,
    password: Option<String>,
    database: Option<String>,
    options: Option<String>,
    application_name: Option<String>,
    encryption: Encryption,
    root_certificate: Option<String>,
}

/// The values of `sslmode`, without `allow`: neither driver tries an unencrypted connection first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Encryption {
    Disable,
    #[default]
    Prefer,
    Require,
    VerifyCa,
    VerifyFull,
}

fn wrong(reason: impl std::fmt::Display) -> Error {
    Error::Incompatible(format!("connection string: {reason}"))
}

impl Target {
    /// # Errors
    /// [`Error::Incompatible`] if `url` cannot be read, or asks for something that is not supported.
    pub fn parse(url: &str, timeout: Duration) -> Result<Self> {
        Self::of(Parts::parse(url)?, timeout)
    }

    fn of(parts: Parts, timeout: Duration) -> Result<Self> {
        for name in ["PGSSLCERT", "PGSSLKEY"] {
            if std::env::var_os(name).is_some() {
                // One of the drivers would read it from there.
                return Err(wrong(format!("{name} is set: client certificates are not supported")));
            }
        }
        let host = parts.host.ok_or_else(|| wrong("host is missing"))?;
        let port = parts.port.unwrap_or(PORT);
        let is_socket = host.starts_with('/');
        let encryption = if is_socket { Encryption::Disable } else { parts.encryption };
        let roots = match parts.root_certificate.as_deref() {
            None | Some("system") => Vec::new(),
            Some(path) => std::fs::read(path)
                .map_err(|error| wrong(format!("sslrootcert {path}: {error}")))?,
        };
        let options = options_of(parts.options.as_deref())?;
        let user = parts.user.unwrap_or_else(|| options.get_username().to_owned());
        let database = parts.database.unwrap_or_else(|| user.clone());
        let application = parts.application_name.as_deref().unwrap_or("recoup");

        let mut config = Config::new();
        config
            .user(&user)
            .dbname(&database)
            .port(port)
            .application_name(application)
            .ssl_mode(encryption.of_lane())
            .channel_binding(ChannelBinding::Disable)
            .connect_timeout(timeout)
            .tcp_user_timeout(timeout)
            .keepalives(true)
            .keepalives_idle(Duration::from_secs(5))
            .keepalives_interval(Duration::from_secs(2))
            .keepalives_retries(3);
        if is_socket {
            config.host_path(Path::new(&host));
        } else {
            config.host(&host);
        }
        if let Some(password) = &parts.password {
            config.password(password);
        }
        // Includes the options of the environment, because the other driver reads those too.
        if let Some(options) = options.get_options() {
            config.options(options);
        }
        let connector = Connector::new(encryption.trust(), &roots)?;
        let options = options
            .host(&host)
            .port(port)
            .username(&user)
            // Without this, the driver would take the password from the environment.
            .password(parts.password.as_deref().unwrap_or(""))
            .database(&database)
            .application_name(application)
            .ssl_mode(encryption.of_pools())
            .ssl_root_cert_from_pem(roots)
            // A pooler in between would refuse this setting, and no column is a float.
            .extra_float_digits(None)
            .statement_cache_capacity(STATEMENTS_MAX);
        Ok(Self { config, connector, options })
    }
}

/// Options of the pools that include the server's command-line options, which the driver accepts only in a URL.
fn options_of(options: Option<&str>) -> Result<PgConnectOptions> {
    let url = match options {
        None => "postgres://".to_owned(),
        Some(options) => format!("postgres://?options={}", encode(options)),
    };
    url.parse().map_err(wrong)
}

fn encode(text: &str) -> String {
    text.bytes().map(|byte| format!("%{byte:02X}")).collect()
}

impl Encryption {
    fn of_lane(self) -> SslMode {
        match self {
            Self::Disable => SslMode::Disable,
            Self::Prefer => SslMode::Prefer,
            Self::Require | Self::VerifyCa | Self::VerifyFull => SslMode::Require,
        }
    }

    fn of_pools(self) -> PgSslMode {
        match self {
            Self::Disable => PgSslMode::Disable,
            Self::Prefer => PgSslMode::Prefer,
            Self::Require => PgSslMode::Require,
            Self::VerifyCa => PgSslMode::VerifyCa,
            Self::VerifyFull => PgSslMode::VerifyFull,
        }
    }

    fn trust(self) -> Trust {
        match self {
            Self::Disable | Self::Prefer | Self::Require => Trust::Any,
            Self::VerifyCa => Trust::Authority,
            Self::VerifyFull => Trust::Host,
        }
    }
}

impl Parts {
    fn parse(text: &str) -> Result<Self> {
        let url = text.strip_prefix("postgres://").or_else(|| text.strip_prefix("postgresql://"));
        match url {
            Some(url) => Self::of_url(url),
            None => Self::of_pairs(text),
        }
    }

    /// Parses `user:password@host:port/database?parameter=value&…`, without the scheme.
    fn of_url(url: &str) -> Result<Self> {
        let mut parts = Self::default();
        let (url, parameters) = url.split_once('?').unwrap_or((url, ""));
        let (authority, database) = url.split_once('/').unwrap_or((url, ""));
        let (login, place) = authority.rsplit_once('@').unwrap_or(("", authority));
        let (user, password) = match login.split_once(':') {
            Some((user, password)) => (user, Some(password)),
            None => (login, None),
        };
        let (host, port) = match place.strip_prefix('[') {
            // An IPv6 address.
            Some(rest) => {
                let (host, port) = rest.split_once(']').ok_or_else(|| wrong("] is missing"))?;
                (host, port.strip_prefix(':').unwrap_or(port))
            }
            None => place.split_once(':').unwrap_or((place, "")),
        };
        let given = [("user", user), ("host", host), ("port", port), ("dbname", database)];
        for (name, value) in given.into_iter().filter(|(_, value)| !value.is_empty()) {
            parts.set(name, decode(value)?)?;
        }
        if let Some(password) = password {
            parts.set("password", decode(password)?)?;
        }
        for parameter in parameters.split('&').filter(|parameter| !parameter.is_empty()) {
            let (name, value) = parameter
                .split_once('=')
                .ok_or_else(|| wrong(format!("{parameter} has no value")))?;
            parts.set(&decode(name)?, decode(value)?)?;
        }
        Ok(parts)
    }

    /// Parses `name=value name='quoted value' …`, in which `\` escapes a quote or itself.
    fn of_pairs(text: &str) -> Result<Self> {
        let mut parts = Self::default();
        let mut rest = text.trim_start();
        while !rest.is_empty() {
            let (name, after) =
                rest.split_once('=').ok_or_else(|| wrong(format!("{rest:?} has no value")))?;
            let after = after.trim_start();
            let (quote, after) = match after.strip_prefix('\'') {
                Some(after) => (true, after),
                None => (false, after),
            };
            let mut value = String::new();
            let mut characters = after.char_indices();
            let mut end = if quote { None } else { Some(after.len()) };
            while let Some((at, character)) = characters.next() {
                match character {
                    '\\' => {
                        let escaped = characters.next().ok_or_else(|| wrong("it ends in \\"))?;
                        value.push(escaped.1);
                    }
                    '\'' if quote => {
                        end = Some(at + 1);
                        break;
                    }
                    space if !quote && space.is_whitespace() => {
                        end = Some(at);
                        break;
                    }
                    other => value.push(other),
                }
            }
            let name = name.trim();
            let end = end.ok_or_else(|| wrong(format!("the quote of {name} has no end")))?;
            parts.set(name, value)?;
            rest = after[end..].trim_start();
        }
        Ok(parts)
    }

    fn set(&mut self, name: &str, value: String) -> Result<()> {
        match name {
            "host" if value.contains(',') => {
                return Err(wrong(
                    "several hosts are not supported: name one that leads to the primary",
                ));
            }
            "host" => self.host = Some(value),
            "port" => {
                let port = value
                    .parse()
                    .map_err(|_| wrong(format!("port {value:?} is not a port number")))?;
                self.port = Some(port);
            }
            "user" => self.user = Some(value),
            "password" => self.password = Some(value),
            "dbname" => self.database = Some(value),
            "options" => self.options = Some(value),
            "application_name" => self.application_name = Some(value),
            "sslmode" => {
                self.encryption = match value.as_str() {
                    "disable" => Encryption::Disable,
                    "prefer" => Encryption::Prefer,
                    "require" => Encryption::Require,
                    "verify-ca" => Encryption::VerifyCa,
                    "verify-full" => Encryption::VerifyFull,
                    other => {
                        return Err(wrong(format!(
                            "sslmode must be disable, prefer, require, verify-ca or verify-full, \
                             not {other:?}"
                        )));
                    }
                }
            }
            "sslrootcert" => self.root_certificate = Some(value),
            other => return Err(wrong(format!("the parameter {other:?} is not supported"))),
        }
        Ok(())
    }
}

/// Decodes percent-encoded text such as `%2F`.
fn decode(text: &str) -> Result<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, after @ ..] = rest {
        if *first != b'%' {
            bytes.push(*first);
            rest = after;
            continue;
        }
        let digits = after.get(..2).and_then(|digits| std::str::from_utf8(digits).ok());
        let byte = digits.and_then(|digits| u8::from_str_radix(digits, 16).ok());
        bytes.push(byte.ok_or_else(|| wrong("% is not followed by two digits"))?);
        rest = &after[2..];
    }
    String::from_utf8(bytes).map_err(|_| wrong("it is not UTF-8"))
}

#[cfg(test)]
mod tests {
    use tokio_postgres::config::Host;

    use super::*;

    fn target(text: &str) -> Target {
        Target::parse(text, Duration::from_secs(5)).expect("is a connection string")
    }

    fn refused(text: &str) -> String {
        match Target::parse(text, Duration::from_secs(5)) {
            Ok(_) => panic!("{text} was accepted"),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn both_forms_of_connection_strings_configure_both_drivers_alike() {
        let url = "postgresql://us%40er:pass%3Aword@db.example:5433/da%20ta\
                   ?sslmode=require&options=-c%20geqo%3Doff&application_name=other";
        let pairs = r"host=db.example port = 5433 user=us@er password='pass:word' dbname='da ta'
                   sslmode=require options='-c geqo=off' application_name='oth\er'";
        assert_eq!(
            Parts::parse(url).expect("a URL"),
            Parts::parse(pairs).expect("names and values")
        );
        for text in [url, pairs] {
            let Target { config, options, .. } = target(text);
            assert_eq!(config.get_hosts(), [Host::Tcp("db.example".into())]);
            assert_eq!(options.get_host(), "db.example");
            assert_eq!((config.get_ports(), options.get_port()), (&[5433][..], 5433));
            assert_eq!((config.get_user(), options.get_username()), (Some("us@er"), "us@er"));
            assert_eq!(config.get_password(), Some(&b"pass:word"[..]));
            assert_eq!(config.get_dbname(), Some("da ta"));
            assert_eq!(options.get_database(), Some("da ta"));
            assert_eq!(config.get_options(), Some("-c geqo=off"));
            assert_eq!(options.get_options(), Some("-c geqo=off"));
            assert_eq!(config.get_application_name(), Some("other"));
            assert_eq!(options.get_application_name(), Some("other"));
            assert_eq!(config.get_ssl_mode(), SslMode::Require);
            assert!(matches!(options.get_ssl_mode(), PgSslMode::Require));
        }
    }

    #[test]
    fn socket_path_and_ip_address_are_accepted_as_hosts() {
        for text in ["postgres://me@%2Frun%2Fpg/", "host=/run/pg user=me sslmode=verify-full"] {
            let Target { config, options, .. } = target(text);
            assert_eq!(config.get_hosts(), [Host::Unix("/run/pg".into())]);
            assert_eq!(options.get_host(), "/run/pg");
            assert_eq!((config.get_dbname(), options.get_database()), (Some("me"), Some("me")));
            assert_eq!(config.get_ssl_mode(), SslMode::Disable, "nothing is encrypted on a socket");
            assert!(matches!(options.get_ssl_mode(), PgSslMode::Disable));
        }
        let Target { config, options, .. } = target("postgres://me@[::1]:7/x");
        assert_eq!(config.get_hosts(), [Host::Tcp("::1".into())]);
        assert_eq!((options.get_host(), options.get_port()), ("::1", 7));
    }

    #[test]
    fn unsupported_or_malformed_parameter_is_named_in_the_refusal() {
        let has = |text: &str, word: &str| {
            let told = refused(text);
            assert!(told.contains(word), "{text}: {told}");
        };
        has("postgres://h/x?target_session_attrs=any", "target_session_attrs");
        has("host=h sslcert=/c", "sslcert");
        has("postgres://h/x?sslmode=allow", "allow");
        has("postgres://a,b/x", "several hosts");
        has("host=h port=many", "port");
        has("host=h sslrootcert=/nowhere/at.all", "/nowhere/at.all");
        has("dbname=x", "host is missing");
        has("host='h", "has no end");
        has("nosuch://", "no value");
        has("postgres://[", "] is missing");
        has("postgres://h/%4", "two digits");
    }
}
