//! Both sides against each other, in memory.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use rustls::pki_types::ServerName;
use rustls::{HandshakeKind, RootCertStore};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio_rustls::{TlsAcceptor, TlsConnector, client::TlsStream};

use super::client::server_name;
use super::*;

fn self_signed(dir: &Path) -> Identity {
    Identity::SelfSigned { dir: dir.join("tls"), hostname: "mx.example".parse().expect("valid") }
}

/// Connects, exchanges one octet each way so that tickets arrive, and returns the client's end.
async fn handshake(
    server: &ServerTls,
    connector: &TlsConnector,
    name: &str,
) -> std::io::Result<TlsStream<DuplexStream>> {
    let (near, far) = duplex(64 * 1024);
    let acceptor = TlsAcceptor::from(server.answer(None));
    let serving = tokio::spawn(async move {
        let mut stream = acceptor.accept(far).await?;
        stream.write_all(b"x").await?;
        stream.flush().await?;
        stream.read_u8().await
    });
    let name: ServerName<'static> = server_name(name, "192.0.2.1".parse().expect("valid"));
    let mut stream = connector.connect(name, near).await?;
    stream.read_u8().await?;
    stream.write_all(b"y").await?;
    stream.flush().await?;
    assert_eq!(serving.await.expect("no panic")?, b'y');
    Ok(stream)
}

#[tokio::test]
async fn a_self_signed_pair_is_made_once_and_kept_private() {
    let dir = tempfile::tempdir().expect("a scratch directory");
    let first = ServerTls::load(&self_signed(dir.path())).expect("made");
    let again = ServerTls::load(&self_signed(dir.path())).expect("read");
    assert_eq!(first.certificate(), again.certificate());
    let mode = |name: &str| std::fs::metadata(dir.path().join(name)).expect(name).permissions().mode() & 0o777;
    assert_eq!((mode("tls"), mode("tls/key.pem"), mode("tls/certificate.pem")), (0o700, 0o600, 0o600));
    // A start that was interrupted before the certificate was in place begins anew.
    std::fs::remove_file(dir.path().join("tls/certificate.pem")).expect("removed");
    let anew = ServerTls::load(&self_signed(dir.path())).expect("made anew");
    assert_ne!(first.certificate(), anew.certificate());
}

#[tokio::test]
async fn any_certificate_does_and_the_second_session_is_resumed() {
    let dir = tempfile::tempdir().expect("a scratch directory");
    let server = ServerTls::load(&self_signed(dir.path())).expect("made");
    let client = ClientTls::new();
    let stream = handshake(&server, client.any_certificate(), "other.example").await.expect("any name does");
    let facts = facts(stream.get_ref().1);
    assert_eq!(&*facts.version, "TLSv1.3");
    assert!(facts.cipher.starts_with("TLS_"), "{facts:?}");
    assert_eq!(stream.get_ref().1.handshake_kind(), Some(HandshakeKind::Full));
    let stream = handshake(&server, client.any_certificate(), "other.example").await.expect("resumes");
    assert_eq!(stream.get_ref().1.handshake_kind(), Some(HandshakeKind::Resumed));
}

#[tokio::test]
async fn verify_takes_only_a_trusted_chain_with_the_hops_name() {
    let dir = tempfile::tempdir().expect("a scratch directory");
    let server = ServerTls::load(&self_signed(dir.path())).expect("made");
    let mut anchors = RootCertStore::empty();
    anchors.add(server.certificate()).expect("a certificate");
    let trusting = ClientTls::with_anchors(anchors);
    handshake(&server, trusting.trusted_certificate(), "mx.example").await.expect("trusted, right name");
    handshake(&server, trusting.trusted_certificate(), "other.example").await.expect_err("wrong name");
    handshake(&server, trusting.trusted_certificate(), "[192.0.2.1]").await.expect_err("not by address");

    let strict = ClientTls::with_anchors(RootCertStore::empty());
    // A session begun without verification is never resumed where verification is asked for.
    handshake(&server, strict.any_certificate(), "mx.example").await.expect("any certificate");
    handshake(&server, strict.trusted_certificate(), "mx.example").await.expect_err("nobody vouches for it");
}

#[tokio::test]
async fn a_reload_changes_new_handshakes_and_a_bad_one_changes_nothing() {
    let (old, new) = (tempfile::tempdir().expect("scratch"), tempfile::tempdir().expect("scratch"));
    let server = ServerTls::load(&self_signed(old.path())).expect("made");
    let before = server.certificate();
    let clone = server.clone();
    let (near, far) = duplex(64 * 1024);
    let acceptor = TlsAcceptor::from(server.answer(None));
    let serving = tokio::spawn(async move { acceptor.accept(far).await?.read_u8().await });
    let name = server_name("mx.example", "192.0.2.1".parse().expect("valid"));
    let mut running = ClientTls::new().any_certificate().connect(name, near).await.expect("connects");

    server.reload(&self_signed(new.path())).expect("made");
    assert_ne!(clone.certificate(), before);
    assert_eq!(running.get_ref().1.peer_certificates(), Some(&[before][..]));
    running.write_all(b"z").await.expect("the running session goes on");
    running.flush().await.expect("the running session goes on");
    assert_eq!(serving.await.expect("no panic").expect("received"), b'z');
    let after = server.certificate();
    let missing = Identity::Files { certificate: new.path().join("none.pem"), key: new.path().join("none.pem") };
    server.reload(&missing).expect_err("no such file");
    assert_eq!(server.certificate(), after);
}

#[test]
fn errors_name_the_file_and_the_remedy() {
    let dir = tempfile::tempdir().expect("a scratch directory");
    let at = |name: &str| dir.path().join(name);
    for sub in ["a", "b"] {
        ServerTls::load(&self_signed(&at(sub))).expect("made");
    }
    std::fs::write(at("empty.pem"), "nothing here\n").expect("written");
    std::fs::write(at("broken.pem"), "-----BEGIN CERTIFICATE-----\n!!\n-----END CERTIFICATE-----\n").expect("written");
    let fault = |certificate: &str, key: &str| {
        let identity = Identity::Files { certificate: at(certificate), key: at(key) };
        ServerTls::load(&identity).expect_err("faulty").to_string().replace(&format!("{}/", dir.path().display()), "")
    };
    let (cert, key) = ("a/tls/certificate.pem", "a/tls/key.pem");
    let table = [
        (fault("none.pem", key), "cannot read none.pem: No such file"),
        (fault("empty.pem", key), "empty.pem contains no certificate; it needs the chain"),
        (fault("broken.pem", key), "broken.pem is not valid PEM"),
        (fault(cert, "empty.pem"), "empty.pem contains no private key"),
        (fault(cert, cert), "a/tls/certificate.pem contains no private key"),
        (fault(cert, "b/tls/key.pem"), "the key in b/tls/key.pem does not belong to the first certificate in a/tls/"),
    ];
    for (text, start) in table {
        assert!(text.starts_with(start), "{text}");
    }
}
