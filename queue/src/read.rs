//! Reading messages back: records, content, and all of them for verification.

use std::io;
use std::sync::Arc;

use crate::change;
use crate::codec;
use crate::content::{ContentReader, Source};
use crate::error::LoadError;
use crate::fs::{Access, Dir, Fs, FsFile, read_full};
use crate::id::QueueId;
use crate::index::{Entry, Place};
use crate::item::Item;
use crate::record::{HEADER_OCTETS, Header, Kind, segment_name};

/// What a verification found.
#[derive(Debug, Default)]
pub struct VerifyReport {
    /// Messages read.
    pub messages: usize,
    /// Octets of content read.
    pub content_octets: u64,
    /// Messages that cannot be read as they were written, and why.
    pub damage: Vec<(QueueId, LoadError)>,
}

/// Opens the file of a segment.
pub(crate) type OpenSegment<'a> = &'a dyn Fn(u32) -> io::Result<Arc<dyn FsFile>>;
/// Reads of a segment from an offset until the buffer is full or the segment ends; returns how much.
pub(crate) type ReadSegment<'a> = &'a dyn Fn(u32, u64, &mut [u8]) -> io::Result<usize>;

/// Reads a message's records: the message with its first state, then the newest state and what has
/// changed since.
pub(crate) fn read_item(id: QueueId, entry: &Entry, read: ReadSegment<'_>) -> Result<Item, LoadError> {
    let damaged = |at: Place, what| LoadError::Damaged { id, place: place(at.segment), what };
    let record = read_meta(id, entry.message, entry.meta_octets, Kind::Message, read)?;
    let mut item = codec::decode_item(&record[HEADER_OCTETS..], id, entry.content_octets)
        .map_err(|e| damaged(entry.message, e.0))?;
    if let Some((at, octets)) = entry.state {
        let record = read_meta(id, at, octets, Kind::State, read)?;
        item.state = codec::decode_state(&record[HEADER_OCTETS..]).map_err(|e| damaged(at, e.0))?;
        if item.state.recipients.len() != item.envelope.recipients().len() {
            return Err(damaged(at, "its state is of another number of recipients"));
        }
    }
    for (at, octets) in &entry.changes {
        let record = read_meta(id, *at, *octets, Kind::Change, read)?;
        change::apply(&mut item.state, &record[HEADER_OCTETS..]).map_err(|e| damaged(*at, e.0))?;
    }
    Ok(item)
}

fn place(number: u32) -> String {
    format!("log/{}", segment_name(number))
}

/// Reads a record's header and metadata.
fn read_meta(id: QueueId, at: Place, octets: u32, kind: Kind, read: ReadSegment<'_>) -> Result<Vec<u8>, LoadError> {
    let mut record = vec![0; HEADER_OCTETS + octets as usize];
    let failed = |source| LoadError::Io { id, place: place(at.segment), source };
    let n = read(at.segment, at.offset(), &mut record).map_err(failed)?;
    let header = Header::decode(&record[..n]).filter(|h| (h.kind, h.id, h.meta_octets) == (kind, id, octets));
    let sound = header.is_some_and(|h| record.len() == n && crc32fast::hash(&record[HEADER_OCTETS..]) == h.meta_crc);
    let what = "its record fails the checksum";
    if sound { Ok(record) } else { Err(LoadError::Damaged { id, place: place(at.segment), what }) }
}

/// Opens the content of a message, wherever it lies.
pub(crate) fn open_content(
    fs: &dyn Fs,
    id: QueueId,
    entry: &Entry,
    open: OpenSegment<'_>,
) -> Result<ContentReader, LoadError> {
    // Its header has the checksum of the content.
    let crc = read_header(id, entry.message, &from(open))?.content_crc;
    let (place, file, start) = if entry.spilled {
        let name = id.to_string();
        (format!("content/{name}"), fs.open(Dir::Content, &name, Access::Read), 0)
    } else {
        let start = entry.message.offset() + HEADER_OCTETS as u64 + u64::from(entry.meta_octets);
        (place(entry.message.segment), open(entry.message.segment), start)
    };
    match file {
        Ok(file) => {
            let source = Source::File { file, start, place };
            Ok(ContentReader::new(id, entry.content_octets, crc, source))
        }
        Err(source) => Err(LoadError::Io { id, place, source }),
    }
}

/// Reads the header of a Message record.
pub(crate) fn read_header(id: QueueId, at: Place, read: ReadSegment<'_>) -> Result<Header, LoadError> {
    let failed = |source| LoadError::Io { id, place: place(at.segment), source };
    let mut octets = [0; HEADER_OCTETS];
    let n = read(at.segment, at.offset(), &mut octets).map_err(failed)?;
    let header = Header::decode(&octets[..n]).filter(|h| (h.kind, h.id) == (Kind::Message, id));
    header.ok_or(LoadError::Damaged { id, place: place(at.segment), what: "its record fails the checksum" })
}

/// Reads segments as they are opened.
pub(crate) fn from(open: OpenSegment<'_>) -> impl Fn(u32, u64, &mut [u8]) -> io::Result<usize> {
    move |number, offset, buffer| read_full(&*open(number)?, offset, buffer)
}

/// Reads all messages, a page of ids at a time.
pub(crate) fn verify(
    next: &dyn Fn(Option<QueueId>) -> Vec<QueueId>,
    read: &dyn Fn(QueueId) -> Result<(Item, ContentReader), LoadError>,
    progress: &mut dyn FnMut(usize),
) -> VerifyReport {
    let mut report = VerifyReport::default();
    let mut buffer = vec![0; 256 << 10];
    let mut page = next(None);
    while let Some(last) = page.last().copied() {
        for id in page {
            match read(id).and_then(|(_, content)| read_through(id, content, &mut buffer)) {
                // Delivered meanwhile.
                Err(LoadError::Unknown(_)) => continue,
                Err(error) => report.damage.push((id, error)),
                Ok(octets) => report.content_octets += octets,
            }
            report.messages += 1;
        }
        progress(report.messages);
        page = next(Some(last));
    }
    report
}

pub(crate) fn read_through(id: QueueId, mut content: ContentReader, buffer: &mut [u8]) -> Result<u64, LoadError> {
    let mut at = 0;
    loop {
        match content.read_at(at, buffer) {
            Ok(0) => return Ok(at),
            Ok(n) => at += n as u64,
            Err(e) if e.kind() == io::ErrorKind::InvalidData => {
                let what = "its content fails the checksum";
                return Err(LoadError::Damaged { id, place: content.place().to_owned(), what });
            }
            Err(source) => return Err(LoadError::Io { id, place: content.place().to_owned(), source }),
        }
    }
}
