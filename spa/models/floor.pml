/*
 * An ended grant stays ended, at every member. A client's open (packet 0, and its retry, packet 1) races with a close or
 * a revocation. Both packets are stamped before it. The attacker delivers them to any member at any time.
 *
 * The close puts a floor at the store. Members watch the store: outcomes, which are announced grants that every member
 * installs, and floors arrive in the order of the store's revisions, each member at its own pace. A member has a
 * session, which is a lease at the store; by its own clock it ends no later than by the store's. A floor that a member
 * has in force is acknowledged. The close is answered when every session that lives has acknowledged it.
 *
 * Members crash, lose touch with the store and come back, at any step. shared.pml has what is spent.
 */
#ifndef MEMBERS
#define MEMBERS 2
#endif
#define NONE 2

/* The store. */
bit nonce[2], id, outcome, floor;
bit outcomeFirst; /* the outcome has a lower revision than the floor */
bit session[MEMBERS], acknowledged[MEMBERS];

/* Members. */
bit attached[MEMBERS]; /* the session lives, by the member's own clock */
bit joining[MEMBERS];
bit knows[MEMBERS];    /* the floor is in force here */
bit sawOutcome[MEMBERS];
bit acted[MEMBERS];    /* and the outcome is still to be recorded */
byte doing[MEMBERS] = NONE;
byte answer[MEMBERS];
#define WON 1
#define REPEAT 2
bit late[MEMBERS];  /* it took the packet after the close was answered */
bit grant[MEMBERS]; /* the grant is in this kernel */

bit answered; /* the close */
bool S3_closed_stays_closed = true, S5_no_late_receipt = true, S6_late_packet_refused = true, L_close_answered = true;

#if !defined(ONLY) || ONLY == 3
#define S3(x) S3_closed_stays_closed = (x); assert(S3_closed_stays_closed)
#else
#define S3(x) skip
#endif
#if !defined(ONLY) || ONLY == 5
#define S5(x) S5_no_late_receipt = (x); assert(S5_no_late_receipt)
#else
#define S5(x) skip
#endif

#if !defined(ONLY) || ONLY == 6
#define S6(x) S6_late_packet_refused = (x); assert(S6_late_packet_refused)
#else
#define S6(x) skip
#endif

inline install(m) {
	S3(!answered);
	grant[m] = 1
}

/* may: the last look, in the goroutine that touches the firewall and that acknowledges floors. */
#if defined(NO_RECHECK)
#define may(m) attached[m]
#elif defined(NO_FENCE)
#define may(m) (!knows[m])
#else
#define may(m) (attached[m] && !knows[m])
#endif

#ifdef FLOOR_READ_BEFORE
#define accepts(m) (!floor) /* read from the store, by a request of its own */
#else
#define accepts(m) (!knows[m]) /* what it remembers, which may be old: the transaction compares it */
#endif

inline transact(m) {
	if
#if !defined(FLOOR_READ_BEFORE) && !defined(FLOOR_REMEMBERED)
	:: floor -> doing[m] = NONE /* the floors have changed: checked again, the packet is refused */
#endif
	:: else ->
		if
		:: nonce[doing[m]] -> doing[m] = NONE
		:: !nonce[doing[m]] && !id -> nonce[doing[m]] = 1; id = 1; answer[m] = WON
		:: !nonce[doing[m]] && id && outcome -> nonce[doing[m]] = 1; answer[m] = REPEAT
		:: else -> nonce[doing[m]] = 1; doing[m] = NONE
		fi
	fi
}

/* load reads floors and outcomes, after a start or a time without the store. */
#ifdef FLOOR_EXPIRES
bit expired; /* the store has forgotten the floor, while it still has the outcome */
#else
#define expired false
#endif

inline load(m) {
	knows[m] = floor && !expired;
	sawOutcome[m] = outcome;
	if
	:: knows[m] -> grant[m] = 0
	:: !knows[m] && outcome -> install(m)
	:: else
	fi
}

/* Any number of troubles with two members. With three, one, and no retry: all would take minutes. */
#if MEMBERS == 3
byte troubles = 1;
inline trouble() { troubles-- }
#else
#define troubles true
inline trouble() { skip }
#endif

proctype Member(byte m) {
	do
	:: d_step { attached[m] && doing[m] == NONE && !nonce[0] && accepts(m) -> doing[m] = 0; late[m] = answered }
#if MEMBERS == 2
	:: d_step { attached[m] && doing[m] == NONE && !nonce[1] && accepts(m) -> doing[m] = 1; late[m] = answered }
#endif
	:: d_step { doing[m] != NONE && !answer[m] -> transact(m) }
	:: atomic { answer[m] ->
		if
		:: may(m) && answer[m] == WON -> S6(!late[m]); install(m); acted[m] = 1; S5(!answered)
		:: may(m) && answer[m] == REPEAT -> S5(!answered)
		:: else
		fi;
		answer[m] = 0;
		late[m] = 0;
		doing[m] = NONE
	   }
	:: d_step { acted[m] -> acted[m] = 0; outcome = 1; outcomeFirst = !floor }

	/* The watch. */
	:: atomic { outcome && !sawOutcome[m] && (outcomeFirst || knows[m]) ->
		sawOutcome[m] = 1;
		if
		:: may(m) -> install(m)
		:: else
		fi
	   }
	:: d_step { floor && !knows[m] && (!outcomeFirst || !outcome || sawOutcome[m]) -> knows[m] = 1; grant[m] = 0 }
	:: d_step { knows[m] && session[m] && attached[m] && !acknowledged[m] -> acknowledged[m] = 1 }

#ifndef CALM
	/* No touch with the store: first the member's own clock says so, then the store's. */
	:: d_step { attached[m] && troubles -> trouble(); attached[m] = 0 }
#ifdef NO_FENCE
	:: d_step { session[m] && !joining[m] -> session[m] = 0; acknowledged[m] = 0 }
#else
	:: d_step { session[m] && !attached[m] && !joining[m] -> session[m] = 0; acknowledged[m] = 0 }
#endif
	/* Back, with a new session. */
#ifdef LOAD_FIRST
	:: d_step { !attached[m] && !session[m] && !joining[m] -> load(m); joining[m] = 1 }
	:: d_step { joining[m] -> joining[m] = 0; session[m] = 1; acknowledged[m] = 0; attached[m] = 1 }
#else
	:: d_step { !attached[m] && !session[m] && !joining[m] -> session[m] = 1; acknowledged[m] = 0; joining[m] = 1 }
	:: d_step { joining[m] -> joining[m] = 0; load(m); attached[m] = 1 }
#endif
	/* A crash: the kernel keeps the grant. */
	:: d_step { attached[m] && troubles ->
		trouble(); attached[m] = 0; knows[m] = 0; sawOutcome[m] = 0; acted[m] = 0; answer[m] = 0; doing[m] = NONE }
#endif
	od
}

#if MEMBERS == 3
#define all(x) (x(0) && x(1) && x(2))
#else
#define all(x) (x(0) && x(1))
#endif
#define settled(m) (!session[m] || acknowledged[m])
#define shut(m) (!attached[m] || !grant[m])

proctype Close() {
	floor = 1;
	atomic {
#ifndef ANSWER_AT_COMMIT
		all(settled) ->
#endif
		answered = 1;
		S3(all(shut))
	}
#ifdef FLOOR_EXPIRES
	expired = 1
#endif
}

init {
	byte m;
	atomic {
		do
		:: m < MEMBERS -> session[m] = 1; attached[m] = 1; run Member(m); m++
		:: else -> break
		od;
		m = 0;
		run Close()
	}
#ifdef CALM
	timeout;
	L_close_answered = answered && !grant[0] && !grant[1];
	assert(L_close_answered)
#endif
}
