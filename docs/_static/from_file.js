"use strict";
// The search shows excerpts, for which it fetches pages; a browser does not allow that to a page that is opened from a file.
if (location.protocol === "file:") DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false;
