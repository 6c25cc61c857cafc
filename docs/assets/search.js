/* What a reader types becomes what the search index can find.

   The index is searched by the beginnings of words. A Korean noun with a particle ("인코더를") is the
   beginning of nothing, and "--model" would exclude what it names. So particles behind two syllables
   or more, and double hyphens, are left out of a query on its way to the search worker. */
const QUERY = 2; // Material's number of a message that asks
const PARTICLE = /([가-힣]{2,}?)(?:에서|으로|은|는|이|가|을|를|의|에|로|와|과|도|만)(?![가-힣])/g;
const post = Worker.prototype.postMessage;

Worker.prototype.postMessage = function (message, ...rest) {
  if (message && message.type === QUERY && typeof message.data === "string") {
    const data = message.data.replace(PARTICLE, "$1").replace(/(^|\s)([+]?)--(?=\w)/g, "$1$2");
    message = { ...message, data };
  }
  return post.call(this, message, ...rest);
};
