//! A host between two others that passes on what they say, unchanged, and keeps it.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use crate::support::net::own_address;

/// What was said in one connection.
#[derive(Clone, Default)]
pub struct Transcript {
    /// By who opened it.
    pub client: Vec<u8>,
    /// By who took it.
    pub server: Vec<u8>,
}

/// Takes connections at an address of its own and opens one to the other host for each.
pub struct Recorder {
    address: SocketAddr,
    transcripts: Arc<Mutex<Vec<Transcript>>>,
}

impl Recorder {
    /// Starts one in front of a host, which need not listen yet. It runs until the test's process ends.
    pub fn start(to: SocketAddr) -> Recorder {
        let listener = TcpListener::bind((own_address(), 2527)).expect("the address is ours");
        let address = listener.local_addr().expect("a bound socket has an address");
        let transcripts: Arc<Mutex<Vec<Transcript>>> = Arc::default();
        let all = transcripts.clone();
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let Ok(server) = TcpStream::connect(to) else { continue };
                let number = {
                    let mut all = all.lock().expect("not poisoned");
                    all.push(Transcript::default());
                    all.len() - 1
                };
                let other = |stream: &TcpStream| stream.try_clone().expect("a descriptor is free");
                let (from, back) = ((other(&client), other(&server)), (server, client));
                let (asked, answered) = (all.clone(), all.clone());
                pass(from, move |octets| asked.lock().expect("not poisoned")[number].client.extend(octets));
                pass(back, move |octets| answered.lock().expect("not poisoned")[number].server.extend(octets));
            }
        });
        Recorder { address, transcripts }
    }

    /// Returns where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns what was said so far, connection by connection.
    pub fn transcripts(&self) -> Vec<Transcript> {
        self.transcripts.lock().expect("not poisoned").clone()
    }
}

/// Passes octets on until either end is closed. They are kept before anybody sees them.
fn pass((mut from, mut to): (TcpStream, TcpStream), keep: impl Fn(&[u8]) + Send + 'static) {
    std::thread::spawn(move || {
        let mut octets = [0; 16_384];
        while let Ok(read @ 1..) = from.read(&mut octets) {
            keep(&octets[..read]);
            if to.write_all(&octets[..read]).is_err() {
                break;
            }
        }
        // The other end may be gone already.
        let _ = to.shutdown(Shutdown::Write);
    });
}
