//! Encryption of the lane's connections. The other driver has its own code for this, with the same library and
//! the same rules, so that an `sslmode` means the same for both.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::crypto::ring::default_provider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_postgres::tls::{ChannelBinding, MakeTlsConnect, TlsConnect};
use tokio_rustls::TlsConnector;

use crate::contract::{Error, Result};

/// What a client requires of the server's certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trust {
    /// Nothing: the connection is encrypted, but any server is accepted.
    Any,
    /// The certificate must be signed by a trusted authority.
    Authority,
    /// In addition, the certificate must be valid for the name of the host.
    Host,
}

/// Makes encrypted connections.
#[derive(Clone)]
pub(super) struct Connector {
    config: Arc<ClientConfig>,
}

impl Connector {
    /// `roots` are certificates in PEM, which are trusted in addition to those of the system.
    ///
    /// # Errors
    /// [`Error::Incompatible`] if `roots` holds something that is not a certificate, or if no certificate is
    /// trusted.
    pub fn new(trust: Trust, roots: &[u8]) -> Result<Self> {
        let provider = Arc::new(default_provider());
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .expect("ring has what TLS 1.2 and 1.3 need");
        let verifier: Arc<dyn ServerCertVerifier> = match trust {
            Trust::Any => Arc::new(AnyHost { verifier: None, provider }),
            Trust::Authority => {
                let verifier = Some(verifier(Arc::clone(&provider), roots)?);
                Arc::new(AnyHost { verifier, provider })
            }
            Trust::Host => verifier(provider, roots)?,
        };
        let config =
            builder.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth();
        Ok(Self { config: Arc::new(config) })
    }
}

fn verifier(provider: Arc<CryptoProvider>, roots: &[u8]) -> Result<Arc<WebPkiServerVerifier>> {
    let wrong = |reason: String| Error::Incompatible(format!("sslrootcert: {reason}"));
    let mut store = RootCertStore::empty();
    let system = rustls_native_certs::load_native_certs();
    for error in system.errors {
        tracing::debug!(%error, "a certificate of the system could not be read");
    }
    store.add_parsable_certificates(system.certs);
    for certificate in CertificateDer::pem_slice_iter(roots) {
        let certificate = certificate.map_err(|error| wrong(error.to_string()))?;
        store.add(certificate).map_err(|error| wrong(error.to_string()))?;
    }
    WebPkiServerVerifier::builder_with_provider(Arc::new(store), provider)
        .build()
        .map_err(|error| wrong(error.to_string()))
}

impl<S> MakeTlsConnect<S> for Connector
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    type Stream = Encrypted<S>;
    type TlsConnect = Handshake;
    type Error = rustls::pki_types::InvalidDnsNameError;

    fn make_tls_connect(&mut self, host: &str) -> Result<Handshake, Self::Error> {
        let host = ServerName::try_from(host)?.to_owned();
        Ok(Handshake { connector: Arc::clone(&self.config).into(), host })
    }
}

pub(super) struct Handshake {
    connector: TlsConnector,
    host: ServerName<'static>,
}

impl<S> TlsConnect<S> for Handshake
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    type Stream = Encrypted<S>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Encrypted<S>>> + Send>>;

    fn connect(self, stream: S) -> Self::Future {
        Box::pin(async move { self.connector.connect(self.host, stream).await.map(Encrypted) })
    }
}

pub(super) struct Encrypted<S>(tokio_rustls::client::TlsStream<S>);

impl<S> tokio_postgres::tls::TlsStream for Encrypted<S>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    /// The other driver does not bind the password to the channel, so this one does not either.
    fn channel_binding(&self) -> ChannelBinding {
        ChannelBinding::none()
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Encrypted<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, buffer)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Encrypted<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}

/// Accepts a certificate for any host.
#[derive(Debug)]
struct AnyHost {
    /// Checks that a trusted authority signed the certificate. None accepts any certificate, as for
    /// `sslmode=require`.
    verifier: Option<Arc<WebPkiServerVerifier>>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for AnyHost {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        host: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let Some(verifier) = &self.verifier else {
            return Ok(ServerCertVerified::assertion());
        };
        match verifier.verify_server_cert(certificate, between, host, ocsp, now) {
            // The verifier checks the name last, so everything else is valid.
            Err(rustls::Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) => Ok(ServerCertVerified::assertion()),
            verified => verified,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
    use recoup_test_postgres::{Database, Server};

    use super::super::connection::Connection;
    use super::super::reached::{Probe, Reached};
    use super::super::target::Target;

    const LONG: Duration = Duration::from_secs(60);

    /// Signs certificates. Its own certificate is in a file that a connection string can name.
    struct Authority {
        issuer: Issuer<'static, KeyPair>,
        file: tempfile::NamedTempFile,
    }

    impl Authority {
        fn new() -> Self {
            let mut params = CertificateParams::new(Vec::new()).expect("no names");
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            let key = KeyPair::generate().expect("ring makes keys");
            let certificate = params.self_signed(&key).expect("signs itself");
            let file = tempfile::NamedTempFile::new().expect("there is room");
            std::fs::write(file.path(), certificate.pem()).expect("the file is ours");
            Self { issuer: Issuer::new(params, key), file }
        }

        fn path(&self) -> String {
            self.file.path().display().to_string()
        }

        /// Returns a certificate for a host, and its key.
        fn sign(&self, host: &str) -> (String, String) {
            let key = KeyPair::generate().expect("ring makes keys");
            let params = CertificateParams::new(vec![host.to_owned()]).expect("a name");
            let certificate = params.signed_by(&key, &self.issuer).expect("signs");
            (certificate.pem(), key.serialize_pem())
        }
    }

    /// From now on the server offers encryption with this certificate.
    async fn encrypt(database: &Database, (certificate, key): (String, String)) {
        let superuser = database.client().await;
        for (file, text) in [("server.crt", certificate), ("server.key", key)] {
            let write = format!(
                "copy (select unnest(string_to_array($pem${text}$pem$, E'\\n')))
                to program 'umask 077; cat > {file}'"
            );
            superuser.batch_execute(&write).await.expect("the folder is the server's");
        }
        superuser.batch_execute("alter system set ssl = on").await.expect("it may");
        superuser.batch_execute("select pg_reload_conf()").await.expect("it may");
        // A connection shows the change only once its server process was started after it.
        while database
            .client()
            .await
            .query_one("show ssl", &[])
            .await
            .expect("asks")
            .get::<_, &str>(0)
            == "off"
        {
            tokio::task::yield_now().await;
        }
    }

    /// Whether the connection of each driver is encrypted, or the error with which it was refused.
    async fn connect(database: &Database, parameters: &str) -> [Result<bool, String>; 2] {
        let url = format!("{}?{parameters}", database.url());
        let target = Target::parse(&url, LONG).expect("a connection string");
        let reached = Arc::new(Reached::new(target, LONG));
        const ENCRYPTED: &str = "select ssl from pg_stat_ssl where pid = pg_backend_pid()";
        let pooled = match Connection::open(&reached, LONG, LONG).await {
            Ok(mut connection) => {
                let encrypted = sqlx::query_scalar(ENCRYPTED).fetch_one(&mut *connection).await;
                Ok(encrypted.expect("asks"))
            }
            Err(error) => Err(error.to_string()),
        };
        let lane = match Probe::open(&reached).await {
            Ok(probe) => Ok(probe.is_encrypted().await),
            Err(failure) => Err(crate::contract::Error::from(failure).to_string()),
        };
        [pooled, lane]
    }

    /// Each `sslmode` means the same for both drivers, against a server with a certificate for its address,
    /// with one for another host, with one of an unknown authority, and with none.
    #[tokio::test]
    async fn both_drivers_encrypt_and_verify_as_sslmode_says() {
        let (known, unknown) = (Authority::new(), Authority::new());
        let [right, other] = [known.sign("127.0.0.1"), known.sign("db.example")];
        let servers = [("right", Some(right)), ("other host", Some(other)), ("plain", None)];
        for (name, certificate) in servers {
            let server = Server::start(&[]);
            let database = server.database().await;
            let is_plain = certificate.is_none();
            if let Some(certificate) = certificate {
                encrypt(&database, certificate).await;
            }
            let modes = ["disable", "prefer", "require", "verify-ca", "verify-full"];
            for mode in modes {
                for (authority, is_known) in [(&known, true), (&unknown, false)] {
                    let parameters = format!("sslmode={mode}&sslrootcert={}", authority.path());
                    let expected = match mode {
                        "disable" => Some(false),
                        "prefer" => Some(!is_plain),
                        _ if is_plain => None,
                        "require" => Some(true),
                        "verify-ca" => is_known.then_some(true),
                        _ => (is_known && name == "right").then_some(true),
                    };
                    for done in connect(&database, &parameters).await {
                        let told = format!("{name}, {mode}, known: {is_known}: {done:?}");
                        assert_eq!(done.as_ref().ok().copied(), expected, "{told}");
                        if let (Err(reason), false) = (&done, is_plain) {
                            assert!(reason.contains("certificate"), "{told}");
                        }
                    }
                }
            }
        }
    }
}
