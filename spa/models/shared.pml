/*
 * Several gateways share one server id behind one address. This model is about what they spend: the nonce of each
 * packet and the request id of each command.
 *
 * A client sends packet 0 and retries with packet 1: another nonce, the same request id. The network belongs to an
 * attacker, who delivers any packet that was sent to any member, in any order, as often as he likes. Members crash at
 * any step. The store applies a request late, several times or never; each answer is lost, late or repeated.
 *
 * An attempt is one packet at one run of one member. It names its requests to the store, so answers to another run, or
 * to a packet that was given up, are recognised.
 */
#ifndef MEMBERS
#define MEMBERS 2
#endif
#ifndef CRASHES
#define CRASHES 1 /* of each member */
#endif
#define PACKETS 2
#define LIVES (CRASHES + 1)
#define ATTEMPTS (MEMBERS * LIVES * PACKETS)
#define ATTEMPT(m, r, p) (((m) * LIVES + (r)) * PACKETS + (p))
#define PACKET(a) ((a) % PACKETS)
#define LIFE(a) (((a) / PACKETS) % LIVES)
#define MEMBER(a) ((a) / (PACKETS * LIVES))
#define NOBODY ATTEMPTS
#define IDLE PACKETS

/* The network. */
bit sent[PACKETS];
bit reaches[MEMBERS * PACKETS]; /* CALM: the packet gets to this member, once */

/* The store: the attempt that created each key, and whether the outcome has been added to the request id. */
byte nonce[PACKETS];
byte id = NOBODY;
bit outcome;

/* Between members and store. Nothing is taken away from these: every message can come again, at any later time. */
bit asked[ATTEMPTS], puts[ATTEMPTS];
bit absent[ATTEMPTS];    /* answer: the keys are absent (or, of two transactions, the first succeeded) */
bit won[ATTEMPTS];     /* answer: both keys were created by this attempt */
bit pending[ATTEMPTS]; /* answer: the nonce was created; another attempt has the request id */
bit known[ATTEMPTS];   /* answer: the same, and here is the recorded outcome */
bit spent[ATTEMPTS];   /* answer: another attempt has the nonce */

/* Members. */
byte life[MEMBERS], doing[MEMBERS];
bit seen[MEMBERS * PACKETS]; /* its own memory, or journal */
bit acted[MEMBERS];          /* in this run, for the request id */

/* What has happened: the properties count it. */
byte actsOfNonce[PACKETS], actsOfID, answers[PACKETS];
bool S1_nonce_acts_once = true, S2_id_acts_once = true, S4_nonce_answered_once = true, L_granted_once = true;

inline receipt(p) {
	answers[p]++;
#if !defined(ONLY) || ONLY == 4
	S4_nonce_answered_once = answers[p] < 2;
	assert(S4_nonce_answered_once);
#endif
	if
	:: answers[p] > 1 -> answers[p] = 1
	:: else
	fi
}

/* act opens the port: from here on the firewall has been touched. */
inline act(m, p) {
	acted[m] = 1;
	actsOfNonce[p]++;
	actsOfID++;
#if !defined(ONLY) || ONLY == 1
	S1_nonce_acts_once = actsOfNonce[p] < 2;
	assert(S1_nonce_acts_once);
#endif
#if !defined(ONLY) || ONLY == 2
	S2_id_acts_once = actsOfID < 2;
	assert(S2_id_acts_once);
#endif
	if /* keeps the state space finite where another property is looked at */
	:: actsOfNonce[p] > 1 -> actsOfNonce[p] = 1
	:: else
	fi;
	if
	:: actsOfID > 1 -> actsOfID = 1
	:: else
	fi
}

/* idle: the member waits for nothing. Answers to what it gave up are ignored, so they are left out. */
inline idle(m) {
	d_step {
#ifndef STALE_ANSWER
		if
		:: doing[m] != IDLE ->
			absent[ATTEMPT(m, life[m], doing[m])] = 0;
			won[ATTEMPT(m, life[m], doing[m])] = 0;
			pending[ATTEMPT(m, life[m], doing[m])] = 0;
			known[ATTEMPT(m, life[m], doing[m])] = 0;
			spent[ATTEMPT(m, life[m], doing[m])] = 0
		:: else
		fi;
#endif
		doing[m] = IDLE
	}
}

/* ours: the request id belongs to a packet that this run of this member gave up before it acted. */
#ifdef STALE_ANSWER
#define waits(a) true
#else
#define waits(a) (doing[MEMBER(a)] == PACKET(a) && life[MEMBER(a)] == LIFE(a))
#endif
#define ours(m) (id != NOBODY && MEMBER(id) == m && LIFE(id) == life[m] && !acted[m])

#ifdef CALM
#define arrives(m, p) (doing[m] == IDLE && sent[p] && !seen[m * PACKETS + p] && reaches[m * PACKETS + p])
#else
#define arrives(m, p) (doing[m] == IDLE && sent[p] && !seen[m * PACKETS + p])
#endif

inline take(m, p) {
	seen[m * PACKETS + p] = 1;
#ifdef LOCAL
	act(m, p);
	receipt(p)
#else
#ifdef SPEND_AFTER_GRANT
	act(m, p);
#endif
	doing[m] = p;
	asked[ATTEMPT(m, life[m], p)] = 1
#endif
}

#define hears(a) (won[a] || pending[a] || known[a] || spent[a] || absent[a] && !puts[a])

/* hear handles an answer to attempt a, which is about packet p. */
inline hear(m, p, a) {
	if
	:: won[a] -> idle(m);
#ifndef SPEND_AFTER_GRANT
		act(m, p);
#endif
		receipt(p)
	:: pending[a] -> idle(m);
		if
		:: ours(m) -> act(m, p); receipt(p)
		:: else /* no answer: the client retries */
		fi
	:: known[a] -> idle(m); receipt(p)
	:: spent[a] -> idle(m)
	:: absent[a] && !puts[a] -> puts[a] = 1
	fi
}

proctype Member(byte m) {
	do
	/* A packet comes that authenticates and is fresh. */
	:: atomic { arrives(m, 0) -> take(m, 0) }
	:: atomic { arrives(m, 1) -> take(m, 1) }

	/* An answer comes to what the member waits for. */
	:: atomic { doing[m] == 0 && hears(ATTEMPT(m, life[m], 0)) -> hear(m, 0, ATTEMPT(m, life[m], 0)) }
	:: atomic { doing[m] == 1 && hears(ATTEMPT(m, life[m], 1)) -> hear(m, 1, ATTEMPT(m, life[m], 1)) }
#ifdef STALE_ANSWER
	:: atomic { doing[m] == 0 && hears(ATTEMPT(m, 0, 0)) -> hear(m, 0, ATTEMPT(m, 0, 0)) }
#endif

	/* The outcome is recorded, some time after the act, or never. */
	:: acted[m] && !outcome -> outcome = 1

#ifndef CALM
	/* No answer in time. */
	:: atomic { doing[m] != IDLE ->
#ifdef FAIL_OPEN
		act(m, doing[m]); receipt(doing[m]);
#endif
		idle(m)
	   }

	:: atomic { life[m] < CRASHES ->
		idle(m);
		life[m]++;
		acted[m] = 0;
#ifndef JOURNAL
		seen[m * PACKETS] = 0; seen[m * PACKETS + 1] = 0
#endif
	   }
#endif
	od
}

/* repeated: attempt a created the nonce (now, or when the store applied it before), but not the request id. */
inline repeated(a) {
	if
	:: outcome -> known[a] = waits(a)
	:: else -> pending[a] = waits(a)
	fi
}

/* createBoth is the transaction: both keys, or the nonce alone if the request id is there, or nothing. */
inline createBoth(a) {
	if
	:: nonce[PACKET(a)] != NOBODY && nonce[PACKET(a)] != a -> spent[a] = waits(a)
	:: else ->
		nonce[PACKET(a)] = a;
		if
#ifdef NONCE_ONLY
		:: true -> won[a] = waits(a)
#else
		:: id == NOBODY || id == a -> id = a; won[a] = waits(a)
		:: else -> repeated(a)
#endif
		fi
	fi
}

inline createNonce(a) {
	if
	:: nonce[PACKET(a)] == NOBODY || nonce[PACKET(a)] == a -> nonce[PACKET(a)] = a; absent[a] = waits(a)
	:: else -> spent[a] = waits(a)
	fi
}

inline get(a) {
	if
	:: nonce[PACKET(a)] != NOBODY -> spent[a] = waits(a)
	:: nonce[PACKET(a)] == NOBODY && id == NOBODY -> absent[a] = waits(a)
	:: else -> nonce[PACKET(a)] = a; repeated(a)
	fi
}

/* apply carries out what attempt a asked for, perhaps again. */
inline apply(a) {
#ifdef CALM
	asked[a] = 0;
#endif
#if defined(GET_THEN_PUT)
	get(a)
#elif defined(NONCE_FIRST)
	createNonce(a)
#elif defined(ID_FIRST)
	if
	:: id == NOBODY -> id = a
	:: else
	fi;
	absent[a] = waits(a)
#else
	createBoth(a)
#endif
}

/* applySecond carries out the second half, where there is one. */
inline applySecond(a) {
#ifdef CALM
	puts[a] = 0; absent[a] = 0;
#endif
#if defined(GET_THEN_PUT)
	nonce[PACKET(a)] = a; id = a; won[a] = waits(a)
#elif defined(NONCE_FIRST)
	if
	:: id == NOBODY || id == a -> id = a; won[a] = waits(a)
	:: else -> repeated(a)
	fi
#else
	if
	:: nonce[PACKET(a)] != NOBODY && nonce[PACKET(a)] != a -> spent[a] = waits(a)
	:: else -> nonce[PACKET(a)] = a;
		if
		:: id == a -> won[a] = waits(a)
		:: else -> repeated(a)
		fi
	fi
#endif
}

/* Store handles what comes from member m. */
proctype Store(byte m) {
	do
	:: d_step { asked[ATTEMPT(m, 0, 0)] -> apply(ATTEMPT(m, 0, 0)) }
	:: d_step { asked[ATTEMPT(m, 0, 1)] -> apply(ATTEMPT(m, 0, 1)) }
#if CRASHES > 0
	:: d_step { asked[ATTEMPT(m, 1, 0)] -> apply(ATTEMPT(m, 1, 0)) }
	:: d_step { asked[ATTEMPT(m, 1, 1)] -> apply(ATTEMPT(m, 1, 1)) }
#endif
#if defined(GET_THEN_PUT) || defined(NONCE_FIRST) || defined(ID_FIRST)
	:: d_step { puts[ATTEMPT(m, 0, 0)] -> applySecond(ATTEMPT(m, 0, 0)) }
	:: d_step { puts[ATTEMPT(m, 0, 1)] -> applySecond(ATTEMPT(m, 0, 1)) }
#if CRASHES > 0
	:: d_step { puts[ATTEMPT(m, 1, 0)] -> applySecond(ATTEMPT(m, 1, 0)) }
	:: d_step { puts[ATTEMPT(m, 1, 1)] -> applySecond(ATTEMPT(m, 1, 1)) }
#endif
#endif
	od
}

proctype Client() {
	sent[0] = 1;
	sent[1] = 1 /* the retry, if there is any */
}

init {
	byte m;
	atomic {
		nonce[0] = NOBODY; nonce[1] = NOBODY;
		m = 0;
		do
		:: m < MEMBERS -> doing[m] = IDLE;
#ifdef CALM
			if
			:: reaches[m * PACKETS] = 1
			:: skip
			fi;
#ifdef RETRY
			if
			:: reaches[m * PACKETS + 1] = 1
			:: skip
			fi;
#endif
#endif
			m++
		:: else -> break
		od;
#ifdef CALM
		/* The first packet gets to one member at least. */
		m = 0;
		do
		:: m < MEMBERS && !reaches[m * PACKETS] -> m++
		:: m < MEMBERS && reaches[m * PACKETS] -> break
		:: m == MEMBERS -> reaches[0] = 1; break
		od;
#endif
		m = 0;
		do
		:: m < MEMBERS -> run Member(m); run Store(m); m++
		:: else -> break
		od;
		m = 0;
		run Client()
	}
#ifdef CALM
	timeout;
	L_granted_once = actsOfID == 1 && answers[0] + answers[1] > 0;
	assert(L_granted_once)
#endif
}
