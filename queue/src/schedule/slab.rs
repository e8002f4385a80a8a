//! Numbered places for values of one kind, handed out again when they are free. In pieces, so that
//! growing never moves what is there: a million jobs are not copied while everyone waits.

/// Values in one piece.
const PIECE: usize = 4_096;

/// Values by number.
#[derive(Debug)]
pub(super) struct Slab<T> {
    pieces: Vec<Vec<T>>,
    free: Vec<u32>,
    len: usize,
}

impl<T> Default for Slab<T> {
    fn default() -> Slab<T> {
        Slab { pieces: Vec::new(), free: Vec::new(), len: 0 }
    }
}

impl<T> Slab<T> {
    /// Returns how many values there are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Returns a number above that of every value.
    pub fn end(&self) -> u32 {
        let full = self.pieces.len().saturating_sub(1) * PIECE;
        u32::try_from(full + self.pieces.last().map_or(0, Vec::len)).expect("fewer than 2^32 values fit in memory")
    }

    /// Takes a value in; returns its number.
    pub fn insert(&mut self, value: T) -> u32 {
        self.len += 1;
        if let Some(number) = self.free.pop() {
            *self.at(number) = value;
            return number;
        }
        if self.pieces.last().is_none_or(|piece| piece.len() == PIECE) {
            self.pieces.push(Vec::with_capacity(PIECE));
        }
        let number = self.end();
        self.pieces.last_mut().expect("there is a piece with room").push(value);
        number
    }

    /// Frees a number. The value stays where it is until the number is given out again.
    pub fn free(&mut self, number: u32) {
        self.len -= 1;
        self.free.push(number);
    }

    /// Returns the value with a number that was given out.
    pub fn get(&self, number: u32) -> &T {
        &self.pieces[number as usize / PIECE][number as usize % PIECE]
    }

    /// The same, to change it.
    pub fn at(&mut self, number: u32) -> &mut T {
        &mut self.pieces[number as usize / PIECE][number as usize % PIECE]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_given_out_again_when_it_is_free() {
        let mut slab = Slab::default();
        let numbers: Vec<u32> = (0..10_000).map(|value| slab.insert(value)).collect();
        assert_eq!((slab.len(), slab.end()), (10_000, 10_000));
        assert!(numbers.iter().all(|number| slab.get(*number) == number));
        slab.free(4_096);
        assert_eq!(slab.insert(7), 4_096);
        assert_eq!((*slab.get(4_096), slab.len()), (7, 10_000));
    }
}
