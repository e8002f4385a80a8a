//! The metrics over HTTP/1.1, for Prometheus: `GET /metrics`, and 404 for all else.
//!
//! Bounded in connections, request size and time; a client that stalls costs one place for
//! [`CONNECTION_SECONDS_MAX`] seconds and nothing else.

use std::convert::Infallible;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};

use super::Metrics;

const CONNECTIONS_MAX: usize = 16;
const CONNECTION_SECONDS_MAX: u64 = 30;
const HEADER_SECONDS_MAX: u64 = 5;
const REQUEST_OCTETS_MAX: usize = 16 * 1024;
const OPENMETRICS: HeaderValue = HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");
const PLAIN: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");

/// Serves `metrics` on `listener` until it is dropped, to this host and whomever `allows` names;
/// connections of others are closed unread. `refresh` is called before each answer: it sets the
/// gauges that nobody keeps current.
pub async fn serve(
    listener: TcpListener,
    metrics: Arc<Metrics>,
    allows: impl Fn(IpAddr) -> bool,
    refresh: Arc<dyn Fn(&Metrics) + Send + Sync>,
) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let place = places.clone().acquire_owned().await.expect("the semaphore is never closed");
        match listener.accept().await {
            Ok((_, peer)) if !may_read(peer.ip(), &allows) => {
                tracing::info!(peer = %peer.ip(), "may not read the metrics: see metrics.allow");
            }
            Ok((stream, _)) => {
                let (metrics, refresh) = (metrics.clone(), refresh.clone());
                tokio::spawn(async move {
                    let _held_while_it_runs = place;
                    let limit = Duration::from_secs(CONNECTION_SECONDS_MAX);
                    let _ = timeout(limit, answer_all(stream, &metrics, &*refresh)).await;
                });
            }
            Err(error) => pause_after(error).await,
        }
    }
}

/// Returns whether `peer` is this host or one that `allows` names.
fn may_read(peer: IpAddr, allows: impl Fn(IpAddr) -> bool) -> bool {
    let peer = peer.to_canonical();
    peer.is_loopback() || allows(peer)
}

/// Out of descriptors and the like: the next call would fail as well.
async fn pause_after(error: io::Error) {
    tracing::warn!(%error, "cannot accept a connection for metrics");
    sleep(Duration::from_millis(100)).await;
}

/// A client that breaks off or speaks no HTTP is its own trouble: the result says no more.
async fn answer_all(stream: TcpStream, metrics: &Metrics, refresh: &(dyn Fn(&Metrics) + Send + Sync)) {
    let service = service_fn(|request| async move { Ok::<_, Infallible>(answer(&request, metrics, refresh)) });
    let _ = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(Duration::from_secs(HEADER_SECONDS_MAX))
        .max_buf_size(REQUEST_OCTETS_MAX)
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

fn answer(
    request: &Request<Incoming>,
    metrics: &Metrics,
    refresh: &(dyn Fn(&Metrics) + Send + Sync),
) -> Response<Full<Bytes>> {
    if request.uri().path() != "/metrics" {
        return text(StatusCode::NOT_FOUND, PLAIN, "Here is only /metrics.\n".into());
    }
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let mut refusal = text(StatusCode::METHOD_NOT_ALLOWED, PLAIN, "Only GET and HEAD.\n".into());
        refusal.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return refusal;
    }
    refresh(metrics);
    text(StatusCode::OK, OPENMETRICS, metrics.text())
}

fn text(status: StatusCode, content_type: HeaderValue, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, content_type);
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    async fn ask(request: &[u8]) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        let refresh = Arc::new(|metrics: &Metrics| {
            metrics.queue_messages.set(7);
        });
        let server = tokio::spawn(serve(listener, Arc::new(Metrics::new()), |_| false, refresh));
        let mut stream = TcpStream::connect(address).await.expect("it listens");
        stream.write_all(request).await.expect("sent");
        let mut answer = Vec::new();
        // A server that closes with our octets unread resets the connection; what it said counts.
        let _ = timeout(Duration::from_secs(10), stream.read_to_end(&mut answer)).await.expect("it closes");
        server.abort();
        String::from_utf8_lossy(&answer).into_owned()
    }

    #[tokio::test]
    async fn prometheus_gets_its_text_and_others_a_404() {
        let answer = ask(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        assert!(answer.contains("application/openmetrics-text") && answer.contains("\npostroad_queue_messages 7\n"));
        let answer = ask(b"GET /secret HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 404 "), "{answer}");
        let answer = ask(b"POST /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 405 "), "{answer}");
    }

    #[tokio::test]
    async fn garbage_and_endless_headers_end_the_connection() {
        let answer = ask(b"\x16\x03\x01\x02\x00garbage\r\n\r\n").await;
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 400 "), "{answer}");
        let endless = [b"GET /metrics HTTP/1.1\r\n".as_slice(), &b"A: aaaaaaaaaaaaaaaa\r\n".repeat(3000)].concat();
        let answer = ask(&endless).await;
        assert!(!answer.contains("200 OK"), "{answer}");
    }

    #[test]
    fn only_this_host_and_those_named_may_read() {
        let allows = |peer: IpAddr| peer == IpAddr::from([192, 0, 2, 7]);
        let may = |peer: &str| may_read(peer.parse().expect(peer), allows);
        assert!(may("127.0.0.1") && may("::1") && may("::ffff:127.0.0.1"), "this host always");
        assert!(may("192.0.2.7") && may("::ffff:192.0.2.7"));
        assert!(!may("192.0.2.8") && !may("2001:db8::1"));
    }
}
