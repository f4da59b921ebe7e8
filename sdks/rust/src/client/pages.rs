//! Lists that are read page by page.

use std::future::Future;
use std::pin::Pin;

use crate::Error;

type Page<T> = Result<(Vec<T>, String), Error>;
type Fetch<T> = Box<dyn Fn(String) -> Pin<Box<dyn Future<Output = Page<T>> + Send>> + Send + Sync>;

/// A list that is read page by page.
///
/// ```no_run
/// # async fn example(client: recoup_sdk::Client) -> Result<(), recoup_sdk::Error> {
/// let mut pages = client.workflows("");
/// while let Some(page) = pages.next().await? {
///     for workflow in page {
///         println!("{}", workflow.name);
///     }
/// }
/// # Ok(())
/// # }
/// ```
pub struct Pages<T> {
    fetch: Fetch<T>,
    /// `None` once the last page was read.
    token: Option<String>,
}

impl<T> Pages<T> {
    pub(crate) fn new<F>(fetch: impl Fn(String) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Page<T>> + Send + 'static,
    {
        Self { fetch: Box::new(move |token| Box::pin(fetch(token))), token: Some(String::new()) }
    }

    /// Reads the next page, which may be empty. Returns `None` after the last page.
    ///
    /// # Errors
    /// Those of the call that reads the page. After an error, the next call of `next` asks for the same
    /// page again.
    pub async fn next(&mut self) -> Result<Option<Vec<T>>, Error> {
        let Some(token) = &self.token else { return Ok(None) };
        let (items, next) = (self.fetch)(token.clone()).await?;
        self.token = (!next.is_empty()).then_some(next);
        Ok(Some(items))
    }

    /// Reads pages until there are `limit` items, or no more pages.
    ///
    /// # Errors
    /// As [`Self::next`].
    pub async fn collect(mut self, limit: usize) -> Result<Vec<T>, Error> {
        let mut items = Vec::new();
        while items.len() < limit {
            let Some(page) = self.next().await? else { break };
            items.extend(page);
        }
        items.truncate(limit);
        Ok(items)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers() -> Pages<u32> {
        Pages::new(|token: String| async move {
            let first: u32 = token.parse().unwrap_or(0);
            let next = if first < 6 { (first + 3).to_string() } else { String::new() };
            Ok((vec![first, first + 1, first + 2], next))
        })
    }

    #[tokio::test]
    async fn reads_every_page_once() {
        assert_eq!(numbers().collect(usize::MAX).await.expect("no failure"), Vec::from_iter(0..9));
        assert_eq!(numbers().collect(4).await.expect("no failure"), [0, 1, 2, 3]);
        let mut pages = numbers();
        for expected in [Some(3), Some(3), Some(3), None, None] {
            assert_eq!(pages.next().await.expect("no failure").map(|page| page.len()), expected);
        }
    }
}
