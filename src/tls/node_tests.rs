//! Members of the mesh against each other and against hosts that are none, in memory.

use std::io;

use postroad_mesh::{NodeId, SecretKey};
use rustls::HandshakeKind;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio_rustls::{LazyConfigAcceptor, TlsConnector};

use super::*;
use crate::tls::{ClientTls, Identity, ServerTls};

fn node(seed: u8) -> NodeTls {
    NodeTls::new(&SecretKey::from_seed(&[seed; 32])).expect("a key")
}

/// A host with these keys, and an ordinary certificate.
fn host(nodes: &[u8]) -> ServerTls {
    let directory = tempfile::tempdir().expect("a scratch directory");
    let identity =
        Identity::SelfSigned { dir: directory.path().join("tls"), hostname: "mx.example".parse().expect("valid") };
    let tls = ServerTls::load(&identity).expect("made");
    tls.set_nodes(nodes.iter().map(|seed| node(*seed)).collect());
    tls
}

type Ends = (tokio_rustls::client::TlsStream<DuplexStream>, tokio_rustls::server::TlsStream<DuplexStream>);

/// Shakes hands, and exchanges an octet each way so that whatever either side refuses is heard.
async fn meet(host: &ServerTls, connector: &TlsConnector, name: ServerName<'static>) -> io::Result<Ends> {
    let (near, far) = duplex(64 * 1024);
    let host = host.clone();
    let serving = tokio::spawn(async move {
        let begun = LazyConfigAcceptor::new(rustls::server::Acceptor::default(), far).await?;
        let config = host.answer(begun.client_hello().server_name());
        let mut stream = begun.into_stream(config).await?;
        stream.write_all(b"x").await?;
        stream.flush().await?;
        stream.read_u8().await?;
        io::Result::Ok(stream)
    });
    let mut stream = connector.connect(name, near).await?;
    stream.read_u8().await?;
    stream.write_all(b"y").await?;
    stream.flush().await?;
    Ok((stream, serving.await.expect("no panic")?))
}

fn ids(ends: &Ends) -> (Option<NodeId>, Option<NodeId>) {
    let id = |connection: &CommonState| peer_key(connection).map(|key| key.id());
    (id(ends.0.get_ref().1), id(ends.1.get_ref().1))
}

#[tokio::test]
async fn members_know_each_other_by_key_and_nothing_is_resumed() {
    let (host, me) = (host(&[1]), node(2));
    for _ in 0..2 {
        let ends = meet(&host, me.connector(), server_name(&node(1).id())).await.expect("the key is the right one");
        assert_eq!(ids(&ends), (Some(node(1).id()), Some(node(2).id())));
        let connection = ends.0.get_ref().1;
        assert_eq!(connection.handshake_kind(), Some(HandshakeKind::Full));
        assert_eq!(connection.protocol_version(), Some(rustls::ProtocolVersion::TLSv1_3));
    }
}

#[tokio::test]
async fn whoever_has_another_key_is_not_the_node() {
    let me = node(2);
    assert!(meet(&host(&[3]), me.connector(), server_name(&node(1).id())).await.is_err());
    assert!(meet(&host(&[]), me.connector(), server_name(&node(1).id())).await.is_err());
    // It asks for the right node, and whoever stands between answers with his own key.
    let (near, far) = duplex(64 * 1024);
    let between = tokio_rustls::TlsAcceptor::from(node(3).server().clone());
    let serving = tokio::spawn(async move { between.accept(far).await.is_ok() });
    let met = me.connector().connect(server_name(&node(1).id()), near).await;
    let error = met.expect_err("another key").to_string();
    assert!(error.contains("NotValidForName"), "{error}");
    assert!(!serving.await.expect("no panic"));
}

#[tokio::test]
async fn others_meet_the_ordinary_certificate() {
    let host = host(&[1]);
    for name in ["mx.example", "other.example"] {
        let name = ServerName::try_from(name).expect("a name");
        let ends = meet(&host, ClientTls::new().any_certificate(), name).await.expect("any certificate does");
        assert_eq!(ids(&ends), (None, None));
    }
    // Without a key of its own nobody gets to speak with the node.
    let asked = server_name(&node(1).id());
    assert!(meet(&host, ClientTls::new().any_certificate(), asked).await.is_err());
}

#[tokio::test]
async fn a_host_that_changes_its_key_answers_to_both() {
    let (host, me) = (host(&[1, 4]), node(2));
    for seed in [1, 4] {
        let ends = meet(&host, me.connector(), server_name(&node(seed).id())).await.expect("both are its own");
        assert_eq!(ids(&ends).0, Some(node(seed).id()));
    }
}

/// Nothing in the handshake has a date: whatever day the verifier is told, the key is good.
#[test]
fn no_day_is_too_late() {
    let verifier = RawKey(provider());
    let shown = CertificateDer::from(SecretKey::from_seed(&[1; 32]).public().spki().to_vec());
    let name = server_name(&node(1).id());
    for seconds in [0, 1_800_000_000, 1_800_000_000 + 11 * 31_557_600, u64::MAX] {
        let day = UnixTime::since_unix_epoch(std::time::Duration::from_secs(seconds));
        assert!(verifier.verify_server_cert(&shown, &[], &name, &[], day).is_ok());
        assert!(verifier.verify_client_cert(&shown, &[], day).is_ok());
    }
    let other = CertificateDer::from(SecretKey::from_seed(&[9; 32]).public().spki().to_vec());
    let now = UnixTime::since_unix_epoch(std::time::Duration::from_secs(0));
    assert!(verifier.verify_server_cert(&other, &[], &name, &[], now).is_err());
    assert!(verifier.verify_client_cert(&CertificateDer::from(vec![0x30, 0x2a]), &[], now).is_err());
}
